"""`python -m tasks.serving COMMAND …`: Prefect's own command, logged in to the server that this user has running."""

import os
import sys

from tasks.settings import set_prefect_defaults

if __name__ == "__main__":
    set_prefect_defaults()
    os.execv(sys.executable, [sys.executable, "-m", "prefect", *sys.argv[1:]])
