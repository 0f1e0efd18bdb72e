"""Command line: LightningCLI for all models, its parser and messages, checkpoint metadata, the config table."""
