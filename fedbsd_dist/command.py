"""A command of one process beside the run itself: its usage, its flags, and its one message for a mistake."""

import sys
from collections.abc import Callable, Sequence

from fedbsd_dist import environment
from fedbsd_dist.errors import UserError


def start(usage: str, work: Callable[[Sequence[str]], str]) -> None:
    """Print the usage, or what `work` says of the arguments. Exit code 0, or 2 for what the user can mend."""
    environment.print_any_name()
    arguments = sys.argv[1:]
    if not arguments or {"--help", "-h"} & set(arguments):
        print(usage)
        return
    try:
        print(work(arguments))
    except UserError as error:
        print(f"fedbsd_dist: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def flags(arguments: Sequence[str], known: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(`--NAME=VALUE` as NAME -> VALUE, the other arguments). Raises UserError for a flag that is not so."""
    given: dict[str, str] = {}
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("-"):
            continue
        if not argument.startswith("--") or name not in known or not value:
            listed = ", ".join(f"--{flag}=..." for flag in known)
            raise UserError(f"{argument}: no such flag. There are {listed} and --help.")
        if name in given:
            raise UserError(f"--{name}: give it once.")
        given[name] = value
    return given, [argument for argument in arguments if not argument.startswith("-")]


def whole_number(flag: str, text: str) -> int:
    """Raises UserError where it is none."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UserError(f"--{flag}={text}: should be a whole number, 0 or more.")
    return int(text)


def fraction(flag: str, text: str, most: float, example: float) -> float:
    """Above 0 and up to `most`. Raises UserError where it is not."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= most:
        raise UserError(f"--{flag}={text}: should be a number above 0 and up to {most:g}, such as {example:g}.")
    return value
