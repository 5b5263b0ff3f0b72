"""Benchmarks. `python -m bench --help` lists them; each runs real processes on this machine and prints its figures."""
