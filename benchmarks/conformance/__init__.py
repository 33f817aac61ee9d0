"""Conformance: properties that make a distillation step right, as small cases for any trainer."""
