"""The error that means: the user's input is wrong."""


class InputError(Exception):
    """The input is wrong, not the program. The message is one line that names the file, field or value."""
