"""Tracked runs: their contents, and their delivery to MLflow exactly once."""
