"""A teacher that runs behind an endpoint: its text for SeqKD, and its likeliest tokens of given text."""
