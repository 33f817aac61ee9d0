"""Tracked runs side by side."""
