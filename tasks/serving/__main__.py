"""`python -m tasks.serving COMMAND …`: Prefect's own command, logged in to the server that this user has running."""

import os
import sys

from tasks.environment.settings import refusing, set_prefect_defaults

if __name__ == "__main__":
    with refusing():
        set_prefect_defaults()
    os.execv(sys.executable, [sys.executable, "-m", "prefect", *sys.argv[1:]])
