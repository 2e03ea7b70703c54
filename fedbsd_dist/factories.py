"""Functions of the user's own, named in an option as `package.module:function`."""

import pkgutil
from collections.abc import Callable
from typing import Any

from fedbsd_dist.errors import UserError


def resolve(path: str, option: str) -> Callable[..., Any]:
    """The function that `path`, the value of `option`, names. Raises UserError if there is none."""
    try:
        function = pkgutil.resolve_name(path)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the module is the user's code: importing it may raise anything
        raise UserError(
            f"{option}={path}: cannot import it ({type(error).__name__}: {error}). Write package.module:function."
        ) from None
    if not callable(function):
        raise UserError(f"{option}={path}: not a function but a {type(function).__name__}.")
    return function  # type: ignore[no-any-return]
