"""Sources of data: files, folders, tables, label files, the Hugging Face hub."""
