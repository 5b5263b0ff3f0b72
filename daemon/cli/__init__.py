"""The commands of `dealix`, a file per noun. Results go to standard output, failures to standard error."""
