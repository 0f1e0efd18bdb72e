"""Llama checkpoint formats."""
