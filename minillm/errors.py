"""Errors a user can fix: the message names the thing, the value and the remedy, and holds no secret."""

from minillm.redaction import redacted

BAD_INPUT = 3
"""Exit status after a StageError, which a retry cannot fix. Its message is in the work folder's error.txt."""
FAILED = "FAILED "
"""Prefix of the line that names the error, other than a StageError, that ended a worker."""
STOPPED = 143
"""Exit status after SIGTERM: a checkpoint was written, and the next attempt continues from it."""


class StageError(Exception):
    """Bad input to a stage, found before or during its work. Retrying does not help."""

    def __init__(self, message: object = "") -> None:
        super().__init__(redacted(str(message)))


class ConfigError(ValueError):
    """A configuration that cannot run, found before anything starts."""

    def __init__(self, message: object = "") -> None:
        super().__init__(redacted(str(message)))


def first_line(error: BaseException) -> str:
    """First line of an error's message, cut to 300 characters; the error's type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def error_words(error: Exception) -> str:
    """Type and first line of a library's error, to be quoted in the message of our own."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"
