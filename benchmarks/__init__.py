"""Speed and memory of the core against what a user could pick instead: `make bench`."""
