"""The stage `prepare`: checks, before anything is trained, that every model can do what will be asked of it."""
