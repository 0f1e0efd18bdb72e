"""Bounded readers of text, YAML and JSON files, and the writer of JSON. Import neither torch nor the command line."""
