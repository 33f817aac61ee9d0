"""Result tables, plots, the report and the model card."""
