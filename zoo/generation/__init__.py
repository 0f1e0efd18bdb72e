"""Text generation: sampling loop and decoders."""
