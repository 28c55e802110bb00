"""Values of a resolved config, each with its origin."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mllmsubj.config.load import flat, load_config
from mllmsubj.config.overrides import apply_overrides
from mllmsubj.config.schema import default_config


@dataclass(frozen=True)
class Entry:
    """Value of one key and its origin."""

    value: Any
    origin: str
    """Origin of the value: "default", the config's name or file, or "command line"."""

    def __str__(self) -> str:
        """Returns the value with its origin as a comment."""
        return f"{self.value!r}  # {self.origin}"


def resolved(spec: str | None, overrides: Sequence[str] = ()) -> dict[str, Entry]:
    """Returns dotted key -> entry for the config `spec` (NAME or FILE, optionally with :VARIANT; None: the defaults).

    `overrides`: `--config.KEY=VALUE`, as on the command line. Raises UserError as `load_config` and
    `apply_overrides` do.
    """
    defaults = default_config()
    config = load_config(spec) if spec else defaults
    base = flat(defaults)
    given = {override.removeprefix("--config.").partition("=")[0].partition("[")[0] for override in overrides}

    def origin(key: str, value: Any) -> str:
        if key in given:
            return "command line"
        return "default" if spec is None or (key in base and base[key] == value) else spec

    values = flat(apply_overrides(config.copy_and_resolve_references(), list(overrides)))
    return {key: Entry(value, origin(key, value)) for key, value in values.items()}


def as_text(entries: dict[str, Entry]) -> str:
    """Returns one line per key, such as `train.batch_size = 32  # tiny`."""
    return "".join(f"{key} = {entry}\n" for key, entry in entries.items())


def difference(here: dict[str, Entry], there: dict[str, Entry]) -> str:
    """Returns a pair of lines for each key whose values differ: "-" is `there`, "+" is `here`, as in a diff."""
    lines = []
    for key in dict.fromkeys((*there, *here)):
        old, new = there.get(key), here.get(key)
        if old is None or new is None or old.value != new.value:
            lines += [f"{sign} {key} = {entry}\n" for sign, entry in (("-", old), ("+", new)) if entry is not None]
    return "".join(lines)
