"""Lists of runs, dicts from dotted config keys to values, as a sweep file's `get_sweep(config)` returns."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mllmsubj.config.overrides import Overrides
from mllmsubj.errors import UserError


def listed(key: str, values: Iterable[Any]) -> list[Overrides]:
    """Returns one run per value of a key."""
    return [{key: value} for value in values]


def zipped(axes: Mapping[str, Sequence[Any]]) -> list[Overrides]:
    """Returns one run per index: the first values of all lists together, then the second ones, and so on.

    Raises UserError if the lists differ in length.
    """
    lengths = {key: len(values) for key, values in axes.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"zipped lists differ in length: {', '.join(f'{k} has {n}' for k, n in lengths.items())}")
    return [dict(zip(axes, values, strict=True)) for values in zip(*axes.values(), strict=True)]


def grid(axes: Mapping[str, Iterable[Any]]) -> list[Overrides]:
    """Returns one run per combination of values; those of the last key change fastest."""
    return product(*(listed(key, values) for key, values in axes.items()))


def product(*parts: Iterable[Overrides]) -> list[Overrides]:
    """Returns each run of the first part combined with each of the second, and so on.

    Raises UserError for a key that two parts set.
    """
    runs: list[Overrides] = [{}]
    for part in parts:
        added = list(part)
        if twice := {key for run in runs for key in run} & {key for run in added for key in run}:
            raise UserError(f"two parts of a product set {min(twice)}")
        runs = [before | after for before in runs for after in added]
    return runs
