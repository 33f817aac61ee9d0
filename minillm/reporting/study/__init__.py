"""Variants of one configuration in one table."""
