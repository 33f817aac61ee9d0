"""Servers that this project starts: guarded, so that they answer their own pages and this user alone."""
