"""Human preference: people compare pairs of answers, blind, on a page of this machine (method.md §7)."""
