"""General abilities, measured by lm-evaluation-harness."""
