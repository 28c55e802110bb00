"""Exceptions for mistakes that the user can fix; the command line prints them as one line and exits with 2."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Mistake that the user can fix; the message names the thing, its value and the fix, in one line."""


class ConfigError(UserError):
    """A config, one of its keys, or an override is wrong."""


class DataError(UserError):
    """A data set, a tokenizer or an image cannot be used."""


class CheckpointError(UserError):
    """A checkpoint or imported weights cannot be used."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" with the known name nearest to `name`, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
