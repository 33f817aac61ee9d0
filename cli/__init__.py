"""The command `minillm`, above the flows: it reads arguments, starts what they name, and says how it ended.

Everything else is imported inside the commands, so that help and completion answer at once.
"""

from minillm.redaction import install

install()  # before an argument with a secret in it is refused
