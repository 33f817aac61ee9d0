"""How a response is compared with references."""
