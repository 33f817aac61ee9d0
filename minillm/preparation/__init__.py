"""The stage `prepare`, which checks before any training that every model can do what will be asked of it."""
