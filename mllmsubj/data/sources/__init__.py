"""Sources of training data, which are opened by name.

Packages such as toyworld register further sources as entry points of the group `mllmsubj.sources`: functions
`(split, examples, size, seed) -> Source`.
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from etils import epath

from mllmsubj.config.data import DataConfig
from mllmsubj.data.example import Source
from mllmsubj.errors import DataError, nearest

GROUP = "mllmsubj.sources"
FILES = "FILE.jsonl, UNO-1M's FILE.json, a folder of ArrayRecord or parquet files, tfds:NAME[:CONFIG][@DIR]"


def open_source(config: DataConfig, seed: int, split: str | None = None) -> Source:
    """Opens the source in a config; the `size` of a registered source is the largest side of the config's sizes."""
    size = max(side for sides in config.sizes for side in sides)
    return open_named(config.source, split or config.split, config.examples, size, seed)


def open_named(name: str, split: str, examples: int, size: int, seed: int) -> Source:
    """Opens a source by name; raises UserError for an unknown name.

    `split` applies to registered sources and TFDS; `examples`, `size` (in pixels) and `seed` to registered sources.
    The libraries of each kind of source are imported when it is opened.
    """
    if name in registered():
        return registered()[name].load()(split, examples, size, seed)
    if name.startswith("tfds:"):
        from mllmsubj.data.sources.tfds import open_tfds

        return open_tfds(name.removeprefix("tfds:"), split)
    path = epath.Path(name).expanduser() if name else None
    if path is None or not path.exists():
        raise DataError(f"source {name!r} is not there{nearest(name, registered())}; a source is {forms()}")
    return _open_folder(path) if path.is_dir() else _open_file(path)


def forms() -> str:
    """Returns the accepted forms of a source's name, for messages."""
    return ", ".join((*registered(), FILES))


@cache
def registered() -> dict[str, EntryPoint]:
    """Returns the registered sources by name, without importing them."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _open_file(path: epath.Path) -> Source:
    if path.suffix == ".jsonl":
        from mllmsubj.data.sources.manifest import open_manifest

        return open_manifest(path)
    if path.suffix == ".json":
        from mllmsubj.data.sources.uno import open_uno

        return open_uno(path)
    raise DataError(f"source {str(path)!r} is a file of no known kind; a source is {forms()}")


def _open_folder(path: epath.Path) -> Source:
    names = [each.name for each in path.iterdir()]
    if any(".array_record" in name or name in ("pack.json", "packing.json") for name in names):
        from mllmsubj.data.sources.array_record import PackSource

        return PackSource(path)
    from mllmsubj.data.sources.parquet import ParquetSource, files_below

    if files := files_below(path):
        return ParquetSource(path, files)
    raise DataError(f"folder {str(path)!r} has no ArrayRecord and no parquet files; a source is {forms()}")
