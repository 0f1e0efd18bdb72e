"""Analyses of all checkpoints of a sweep."""
