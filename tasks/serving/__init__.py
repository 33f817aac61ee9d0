"""Servers that this project starts, guarded so that they answer only their own pages and this user."""
