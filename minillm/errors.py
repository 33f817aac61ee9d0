"""Errors a user can mend: the message names the thing, the value and the remedy."""


class StageError(Exception):
    """Bad input to a stage, found before or during its work. Retrying does not help."""


class ConfigError(ValueError):
    """A configuration that cannot run, found before anything starts."""
