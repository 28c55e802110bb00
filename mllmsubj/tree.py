"""Parameter trees by path: a parameter's path is its keys joined by "/"."""

from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from mllmsubj.typing import Params


def flatten(params: Params) -> dict[str, Any]:
    """Path -> leaf, in order."""
    leaves: dict[str, Any] = flatten_dict(params, sep="/")
    return leaves


def unflatten(leaves: dict[str, Any]) -> Params:
    """Inverse of `flatten`."""
    params: Params = unflatten_dict(leaves, sep="/")
    return params


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
