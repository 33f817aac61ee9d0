"""The surroundings of a command: environment variables, addresses and logins of this user's servers."""
