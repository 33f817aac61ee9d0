"""Scores of stored responses; no model is needed."""
