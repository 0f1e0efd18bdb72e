"""Sweep over task diversity."""
