"""The store of results: artifacts with their manifests, and the digest of the code that computes them."""
