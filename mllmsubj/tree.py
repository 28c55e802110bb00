"""Parameter trees by path: a parameter's path is its keys joined by "/"."""

from functools import partial

from flax.traverse_util import flatten_dict, unflatten_dict

from mllmsubj.typing import Params

flatten = partial(flatten_dict, sep="/")
"""Nested dict -> {path: leaf}, in order."""
unflatten = partial(unflatten_dict, sep="/")
"""Inverse of `flatten`."""


def split(params: Params, paths: set[str]) -> tuple[Params, Params]:
    """(those in `paths`, all others), each a nested dict."""
    leaves = flatten(params)
    inside = {path: leaf for path, leaf in leaves.items() if path in paths}
    return unflatten(inside), unflatten({path: leaf for path, leaf in leaves.items() if path not in paths})


def join(*trees: Params) -> Params:
    """One nested dict of several that share no leaf."""
    leaves: Params = {}
    for tree in trees:
        leaves |= flatten(tree)
    return unflatten(leaves)
