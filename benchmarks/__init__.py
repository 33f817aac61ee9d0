"""Benchmarks of the core's speed and memory against alternatives that a user could pick: `make bench`."""
