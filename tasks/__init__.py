"""Units of work: each is cached by content, retried, resumed and logged, and calls the library for the rest."""
