"""Text generation for any language model: sampling loop, decoders."""
