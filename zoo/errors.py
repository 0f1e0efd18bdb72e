"""UserError: an error that the user can fix, shown as one sentence. Any other exception keeps its traceback."""


class UserError(ValueError):
    """Wrong input, option or file. The message is one sentence that names it and the remedy."""
