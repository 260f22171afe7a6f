"""The one exception that means "what the user gave us is wrong"."""


class InputError(Exception):
    """The user's input is wrong: a file, a field or a value.

    The message is one line that names it. The command line prints it without a traceback and exits with 2.
    """
