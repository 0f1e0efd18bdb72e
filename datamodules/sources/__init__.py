"""Where data is read from: files, folders, tables, label files, the Hugging Face hub."""
