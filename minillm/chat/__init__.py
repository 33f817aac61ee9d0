"""Trying models by hand: a person's messages, answered by a student and its teacher side by side."""
