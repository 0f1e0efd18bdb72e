"""Sharded models (FSDP2): parameters, gradients and optimizer state divided among processes."""
