"""Errors a user can mend: the message names the thing, the value and the remedy, and no secret."""

from minillm.redaction import redacted


class StageError(Exception):
    """Bad input to a stage, found before or during its work. Retrying does not help."""

    def __init__(self, message: object = "") -> None:
        super().__init__(redacted(str(message)))


class ConfigError(ValueError):
    """A configuration that cannot run, found before anything starts."""

    def __init__(self, message: object = "") -> None:
        super().__init__(redacted(str(message)))


def error_words(error: Exception) -> str:
    """Type and first line of what a library raised, for the message of an error of ours."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
