"""Analyses over all checkpoints of a sweep: errors, gradients of the expected loss, and what these explain."""
