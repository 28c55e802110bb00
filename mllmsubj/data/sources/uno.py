"""UNO-1M's labels: a JSON list of pairs of images with a caption each, so that a pair gives two examples.

`{"img_path1", "img_path2", "caption": {"img_path1", "img_path2", "subject": […]}, "vlm_filter_cot": {"score_final"}}`;
images are below the labels' folder, or in `images` in it or next to it, as the data set is published. Labels are read
into memory: all 850 MB take about 8 GB, so a large set should be split (`labels/split1.json`) or packed once.
Source: the dataset card of bytedance-research/UNO-1M and its measured contents; Wu et al. 2025, arXiv 2504.02160.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from mllmsubj.data.sources.files import FilesSource, IndexEntry, inside
from mllmsubj.errors import DataError, UserError

SCORES = (0.0, 4.0)
"""Valid range of `score_final`; other values are parsing errors in the data set and are ignored."""


def open_uno(path: epath.Path) -> FilesSource:
    """Opens a labels file, with two examples per pair, one per direction, and the score `score_final`."""
    text = path.read_bytes()
    try:
        pairs = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(pairs, list) or not pairs:
        raise DataError(f"{path} should be a list of pairs as in UNO-1M's labels; for other data write a FILE.jsonl")
    entries = [entry for number, pair in enumerate(pairs) for entry in _entries(pair, path, number)]
    name = f"UNO labels {path.name}, {len(entries)} examples, sha256 {hashlib.sha256(text).hexdigest()[:16]}"
    return FilesSource(name, _pictures(path, entries[0].target), entries)


def _entries(pair: Any, path: epath.Path, number: int) -> Iterator[IndexEntry]:
    origin = f"{path.name}, pair {number}"
    try:
        caption, paths = pair["caption"], [inside(pair["img_path1"]), inside(pair["img_path2"])]
        prompts = [str(caption["img_path1"]), str(caption["img_path2"])]
        subject = ", ".join(caption.get("subject") or [])
        score = float((pair.get("vlm_filter_cot") or {}).get("score_final", "nan"))
    except UserError as error:
        raise DataError(f"{path}, pair {number}: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{path}, pair {number} is not as in UNO-1M's labels: {type(error).__name__} {error}"
        ) from error
    scores = {"score_final": score} if SCORES[0] <= score <= SCORES[1] else {}
    for reference, target in ((0, 1), (1, 0)):
        yield IndexEntry((paths[reference],), paths[target], prompts[target], origin, subject, (), scores)


def _pictures(path: epath.Path, picture: str) -> epath.Path:
    folders = path.parent, path.parent / "images", path.parent.parent / "images"
    for folder in folders:
        if (folder / picture).parent.is_dir():
            return folder
    raise DataError(f"{path}: no folder of its pictures ({picture!r}); looked in {', '.join(map(str, folders))}")
