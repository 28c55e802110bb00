"""The one exception that means "the user can fix this": the command line prints it as one line, exit code 2."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what was given: names the thing, its value and the fix, in one line."""


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the known name nearest to `name`, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
