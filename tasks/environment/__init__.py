"""Environment of a command: its variables, and the addresses and logins of this user's servers."""
