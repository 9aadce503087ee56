"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """One clear sentence: what is wrong, where (file, line or key), and what was expected.

    The command line prints the sentence without a traceback and exits with code 2.
    """
