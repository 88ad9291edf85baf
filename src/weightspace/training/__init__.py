"""Data, models, recipes and the training loop."""
