"""Contenders, each a program in its own process, so that memory is measured apart and timings can alternate."""
