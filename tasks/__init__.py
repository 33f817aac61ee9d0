"""Tasks of the flows: each is cached by content, retried, resumed and logged, and calls the library for the rest."""

from minillm.redaction import install

install()  # before any of them logs or prints
