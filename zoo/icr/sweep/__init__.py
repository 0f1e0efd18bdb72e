"""Sweep over task diversity: one ICR transformer for each pool size M, trained as members of a stacked model."""
