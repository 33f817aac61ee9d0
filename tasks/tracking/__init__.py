"""What MLflow is to show, delivered exactly once."""
