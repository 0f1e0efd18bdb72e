"""Reading files from elsewhere: checks before anything is allocated, no code from them, one sentence where they fail."""

from zoo.files.regular_files import regular_file

__all__ = ["regular_file"]
