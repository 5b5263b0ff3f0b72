"""The routes, a file per noun. Each has its structs, its handlers, and `routes`, which lists them."""
