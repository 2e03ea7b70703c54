"""The one exception that is meant for the person running the program, not for its programmer."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    `main` prints the message once, without a traceback, and exits with code 2.
    """


class RunFailed(SystemExit):
    """Every rank gives the run up at the same point, for a reason that the user can mend; exit code 2."""

    def __init__(self, problem: str) -> None:
        """`problem`: what the user is to be told, once."""
        super().__init__(2)
        self.problem = problem


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """` Did you mean A, B or C?`, with the space before it, of the nearest `words`; empty where none is near."""
    *others, last = difflib.get_close_matches(word, list(dict.fromkeys(words)), n=4) or [""]
    return f" Did you mean {', '.join(others)}{' or ' if others else ''}{last}?" if last else ""
