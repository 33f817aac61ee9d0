"""MiniLLM on-policy distillation (arXiv 2306.08543): the library, free of Prefect and MLflow."""
