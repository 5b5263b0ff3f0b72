"""The HTTP API: routes, their bodies and their answers. It decides nothing about delivery."""
