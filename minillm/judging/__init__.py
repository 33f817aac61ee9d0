"""A strong model behind an endpoint rates stored responses against their references (method.md §7)."""
