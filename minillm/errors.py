"""Errors a user can mend: the message names the thing, the value and the remedy."""


class StageError(Exception):
    """Bad input to a stage, found before or during its work. Retrying does not help."""


class ConfigError(ValueError):
    """A configuration that cannot run, found before anything starts."""


def error_words(error: Exception) -> str:
    """Type and first line of what a library raised, for the message of an error of ours."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
