"""Sampling, and the stages that generate and store responses."""
