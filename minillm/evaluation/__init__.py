"""What is measured of a model: scores of its stored responses, and lm-evaluation-harness's tasks."""
