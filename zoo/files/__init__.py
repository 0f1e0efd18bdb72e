"""Files: only regular files are read; files are replaced as a whole, locked, and named uniquely while written."""

from zoo.files.regular_files import regular_file

__all__ = ["regular_file"]
