"""Access to the Hugging Face hub."""
