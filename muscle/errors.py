"""The two ways in which a command ends badly."""


class UserError(Exception):
    """Something that a user can mend: a setting, a file, an argument.

    The message is one line that names the setting, the value and the mend. The
    command line prints it without a traceback and exits with code 2.
    """
