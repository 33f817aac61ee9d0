"""Human preference: pairs of answers that people compare, blind, on a page of this machine (method.md §7)."""
