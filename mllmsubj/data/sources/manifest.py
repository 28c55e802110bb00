"""Manifests: one example per line, as JSON; images are files below the manifest's folder.

    {"references": ["a.jpg"], "target": "b.jpg", "prompt": "the dog on a beach", "subject": "dog",
     "masks": ["a_mask.png"], "scores": {"dino": 0.8}, "width": 1024, "height": 768}

The first three are required; "reference": "a.jpg" is short for a single one. `masks` has one entry per reference, null
for none. `width` and `height` are the target's after EXIF rotation; with them no image is opened before training.
"""

import hashlib
import json
import math
from typing import Any

from etils import epath

from mllmsubj.data.sources.files import FilesSource, IndexEntry, inside
from mllmsubj.errors import DataError, UserError, nearest

KEYS = ("reference", "references", "target", "prompt", "subject", "masks", "scores", "width", "height")
_LISTED = 10
"""Maximum number of invalid lines that an error lists besides the first."""


def open_manifest(path: epath.Path) -> FilesSource:
    """Reads a manifest; raises UserError with the first invalid line's problem and the numbers of the others."""
    entries, wrong, digest = [], [], hashlib.sha256()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            digest.update(line)
            if line.strip():
                try:
                    entries.append(_entry(line, f"{path.name}:{number}"))
                except UserError as error:
                    wrong.append((number, error))
    if wrong:
        raise DataError(f"{path}:{wrong[0][0]}: {wrong[0][1]}{_others([number for number, _ in wrong[1:]])}")
    if not entries:
        raise DataError(f"{path} has no examples; write one a line, as JSON")
    name = f"manifest {path.name}, {len(entries)} examples, sha256 {digest.hexdigest()[:16]}"
    return FilesSource(name, path.parent, entries)


def _others(numbers: list[int]) -> str:
    if not numbers:
        return ""
    listed = ", ".join(map(str, numbers[:_LISTED])) + (", …" if len(numbers) > _LISTED else "")
    return f"; wrong as well: {len(numbers)} more line{'s' * (len(numbers) > 1)} ({listed})"


def _entry(line: bytes, origin: str) -> IndexEntry:
    value = _object(line)
    if "reference" in value:
        value["references"] = [value["reference"]]
    references, masks = _texts(value, "references"), value.get("masks") or []
    if not isinstance(masks, list) or not all(mask is None or isinstance(mask, str) for mask in masks):
        raise DataError(f"masks is {masks!r}; it should be a list of paths, null where a reference has none")
    if masks and len(masks) != len(references):
        raise DataError(f"{len(masks)} masks for {len(references)} references; give one each, null where there is none")
    return IndexEntry(
        references=tuple(map(inside, references)),
        target=inside(_text(value, "target")),
        prompt=_text(value, "prompt"),
        origin=origin,
        subject=_text(value, "subject") if value.get("subject") is not None else "",
        masks=tuple(None if mask is None else inside(mask) for mask in masks),
        scores=_scores(value.get("scores") or {}),
        size=_size(value),
    )


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{type(value).__name__} instead of an object; write {{'references': […], …}}")
    for key in value:
        if key not in KEYS:
            raise DataError(f"unknown key {key!r}{nearest(key, KEYS)}; known: {', '.join(KEYS)}")
    if "reference" in value and "references" in value:
        raise DataError("both reference and references; give one of them")
    for key in ("target", "prompt", *(() if "reference" in value else ("references",))):
        if key not in value:
            raise DataError(f"no {key!r}; needed are references, target and prompt")
    return value


def _text(value: dict[str, Any], key: str) -> str:
    text = value[key]
    if not isinstance(text, str):
        raise DataError(f"{key} is {text!r}; it should be text")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataError(f"{key} has half of a surrogate pair, {text!r}; write the letter itself")
    return text


def _texts(value: dict[str, Any], key: str) -> list[str]:
    texts = value[key]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{key} is {texts!r}; it should be a list of paths, at least one")
    return texts


def _scores(scores: Any) -> dict[str, float]:
    if not isinstance(scores, dict):
        raise DataError(f'scores is {scores!r}; it should be an object such as {{"dino": 0.8}}')
    for name, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise DataError(f"score {name!r} is {score!r}; it should be a number")
    return {name: float(score) for name, score in scores.items()}


def _size(value: dict[str, Any]) -> tuple[int, int] | None:
    width, height = value.get("width"), value.get("height")
    if width is height is None:
        return None
    for side in (width, height):
        if isinstance(side, bool) or not isinstance(side, int) or not 0 < side < 2**31:
            raise DataError(f"width and height are {width!r} and {height!r}; give both, in pixels, or neither")
    return width, height  # type: ignore[return-value]
