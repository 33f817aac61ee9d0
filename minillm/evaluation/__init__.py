"""Measurements of the models, on stored responses or on given text."""
