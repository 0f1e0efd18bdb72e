"""Fixed-point solver with exact, memory-constant gradients."""
