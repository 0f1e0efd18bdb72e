"""Training code that all models share: base modules, batches, metrics, random streams."""
