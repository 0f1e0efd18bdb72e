"""Reading files from elsewhere: sizes are checked before memory is used, no code runs, errors are one sentence."""

from zoo.files.regular_files import regular_file

__all__ = ["regular_file"]
