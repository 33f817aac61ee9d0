"""A strong model behind an endpoint rates stored responses beside their references (method.md §7)."""
