"""Metrics that compare a response with its references."""
