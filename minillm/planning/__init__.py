"""Needs of a run, before it is paid for: tokens, operations, memory, disk and time."""
