"""The one exception that is meant for the person running the program, not for its programmer."""


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    `main` prints the message once, without a traceback, and exits with code 2.
    """
