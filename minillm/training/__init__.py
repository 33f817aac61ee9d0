"""The one trainer, its engine, its checkpoints and where its text comes from."""
