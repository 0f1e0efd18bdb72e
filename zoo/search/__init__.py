"""Hyperparameter search with Optuna: `python -m zoo.search`."""
