"""Asking a model behind an OpenAI-compatible endpoint: the connection, the budget, and the answers paid for."""
