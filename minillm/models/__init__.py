"""Causal language models and their tokenizers: checked, loaded, run and saved."""
