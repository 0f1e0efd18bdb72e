"""Baselines that every neural model is compared with: n-grams, bags of words, marginal distributions."""
