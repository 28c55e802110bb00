"""Layouts of examples in the columns of parquet files: Subjects200K's and a general one, detected by columns."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from mllmsubj.data.example import Example, Unreadable
from mllmsubj.data.pixels import decode, size_of
from mllmsubj.errors import DataError

ParquetRow = Mapping[str, Any]
Entry = tuple[tuple[int, int], int, dict[str, float]]
"""(width, height) of the target, number of references, scores."""


@runtime_checkable
class ParquetLayout(Protocol):
    """Mapping from columns to examples."""

    name: str
    examples_per_row: int
    columns: tuple[str, ...]
    """Columns required by `example`."""
    index_columns: tuple[str, ...]
    """Columns required by `entry`."""

    def example(self, row: ParquetRow, which: int, origin: str) -> Example:
        """Returns example number `which` of a row; raises Unreadable if it cannot be read."""
        ...

    def entry(self, row: ParquetRow) -> Entry:
        """Returns the index entry of each of a row's examples."""
        ...


class Subjects200K:
    """Layout of Yuanshi/Subjects200K: one composite image per row, with two views of a subject and their descriptions.

    A row gives two examples, one per direction, each with its target's description. Composites of the first two
    collections are 1056x528 and contain 512-pixel squares at x = 8 and 528; for other sizes see `composite_squares`.
    Source: the data set's card and OminiControl's `Subject200KDataset`.
    """

    name, examples_per_row = "Subjects200K", 2
    wanted = "image, description (with item, description_0, description_1)"

    def __init__(self, schema: pa.Schema) -> None:
        """Selects the columns of a schema that fits."""
        graded = ("quality_assessment",) if "quality_assessment" in schema.names else ()
        self.columns = self.index_columns = ("image", "description", *graded)

    @staticmethod
    def fits(schema: pa.Schema) -> bool:
        """Returns whether the schema has this layout."""
        if not {"image", "description"} <= set(schema.names):
            return False
        description = schema.field("description").type
        named = {field.name for field in description} if pa.types.is_struct(description) else set()
        return _is_picture(schema.field("image").type) and {"description_0", "description_1"} <= named

    def example(self, row: ParquetRow, which: int, origin: str) -> Example:
        """Returns the example whose target is view `which` of the composite."""
        description, what = row["description"] or {}, f"{origin}, composite"
        prompt = description.get(f"description_{which}")
        if not prompt:
            raise Unreadable(f"{origin} has no description_{which}")
        composite = decode(_file(row["image"], what), what)
        side, lefts, top = composite_squares(composite.size, what)
        views = [np.asarray(composite.crop((left, top, left + side, top + side))) for left in lefts]
        subject = description.get("item") or ""
        return Example((views[1 - which],), prompt, views[which], subject, scores=_grades(row), origin=origin)

    def entry(self, row: ParquetRow) -> Entry:
        """Returns the index entry of both examples, from the composite's header."""
        try:
            side, _, _ = composite_squares(size_of(_file(row["image"], ""), ""), "")
        except Unreadable:
            side = 0
        return (side, side), 1, _grades(row)


def composite_squares(size: tuple[int, int], what: str) -> tuple[int, tuple[int, int], int]:
    """Returns the side of a composite's two squares, their left edges, and their top; `size` is (width, height).

    Squares of side s with padding p, shared between neighbors, give a height of s + 2p and a width of 2s + 3p.
    Composites twice as wide as high are 1056x528 (p = 8, last 16 columns unused) or a multiple, or have no padding.
    """
    width, height = size
    padding = 2 * height - width
    if padding == 0 and height % 528 == 0:
        padding = height // 66
    side = height - 2 * padding
    if not 0 <= padding <= height // 16:
        raise Unreadable(f"{what} is {width}x{height}; two squares side by side are about twice as wide as high")
    return side, (padding, side + 2 * padding), padding


class General:
    """Layout with one column per field; images are binary, or structs with `bytes` as Hugging Face stores them."""

    name, examples_per_row = "pairs", 1
    names: Mapping[str, tuple[str, ...]] = dict(
        references=("references", "reference", "image1", "reference_image", "source_image"),
        target=("target", "image2", "target_image"),
        prompt=("prompt", "caption", "text"),
        subject=("subject", "item", "class"),
        masks=("masks", "mask"),
        scores=("scores", "quality_assessment"),
        width=("width",),
        height=("height",),
    )
    wanted = "references|reference|image1 (pictures), target|image2 (picture), prompt|caption (text)"

    def __init__(self, schema: pa.Schema) -> None:
        """Selects the columns of a schema that fits."""
        found = {part: self._column(schema, part) for part in self.names}
        self._of = {part: column for part, column in found.items() if column is not None}
        self.columns = tuple(self._of[part] for part in self._of if part not in ("width", "height"))
        sized = [self._of[part] for part in ("width", "height") if part in self._of]
        pictures = [self._of["references"]] if pa.types.is_list(schema.field(self._of["references"]).type) else []
        scores = [self._of["scores"]] if "scores" in self._of else []
        self.index_columns = (*(sized if len(sized) == 2 else [self._of["target"]]), *pictures, *scores)

    @classmethod
    def _column(cls, schema: pa.Schema, part: str) -> str | None:
        """Returns the first column with a known name and a suitable type, or None."""
        for name in cls.names[part]:
            if name in schema.names and _suits(schema.field(name).type, part):
                return name
        return None

    @classmethod
    def fits(cls, schema: pa.Schema) -> bool:
        """Returns whether the schema has columns for references, target and prompt."""
        return all(cls._column(schema, part) for part in ("references", "target", "prompt"))

    def example(self, row: ParquetRow, which: int, origin: str) -> Example:
        """Returns the row's only example; raises Unreadable if a required field is missing."""
        references, masks = self._as_list(row, "references"), self._as_list(row, "masks")
        prompt = row[self._of["prompt"]]
        if not references or prompt is None:
            raise Unreadable(f"{origin} has no {'prompt' if references else 'reference'}")
        if masks and len(masks) != len(references):
            raise Unreadable(f"{origin} has {len(masks)} masks for {len(references)} references")
        return Example(
            references=tuple(_file(each, f"{origin}, reference") for each in references),
            prompt=prompt,
            target=_file(row[self._of["target"]], f"{origin}, target"),
            subject=(row[self._of["subject"]] if "subject" in self._of else None) or "",
            masks=tuple(None if each is None else _file(each, f"{origin}, mask") for each in masks),
            scores=self._scores(row),
            origin=origin,
        )

    def entry(self, row: ParquetRow) -> Entry:
        """Returns the row's index entry; the target's size is (0, 0) if it cannot be read."""
        several = self._of["references"] in row
        references = len(self._as_list(row, "references")) if several else 1
        try:
            if self._of["target"] in row:
                size = size_of(_file(row[self._of["target"]], ""), "")
            else:
                size = row[self._of["width"]] or 0, row[self._of["height"]] or 0
        except Unreadable:
            size = 0, 0
        return size, references, self._scores(row)

    def _as_list(self, row: ParquetRow, part: str) -> list[Any]:
        value = row[self._of[part]] if part in self._of else None
        return value if isinstance(value, list) else [] if value is None else [value]

    def _scores(self, row: ParquetRow) -> dict[str, float]:
        return _numbers(row[self._of["scores"]]) if "scores" in self._of else {}


LAYOUTS = (Subjects200K, General)


def find_layout(schema: pa.Schema, path: str) -> ParquetLayout:
    """Returns the layout that fits the columns; raises UserError that lists them and each layout's columns."""
    for layout in LAYOUTS:
        if layout.fits(schema):
            return layout(schema)
    found = ", ".join(f"{field.name} ({field.type})" for field in schema)
    wanted = "; or ".join(f"{layout.wanted} as {layout.name}" for layout in LAYOUTS)
    raise DataError(f"{path} has the columns {found}; wanted are {wanted}")


def _is_picture(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_picture(field.type) for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _suits(kind: pa.DataType, part: str) -> bool:
    if part in ("references", "masks") and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return _is_picture(kind.value_type)
    if part in ("references", "masks", "target"):
        return _is_picture(kind)
    if part in ("prompt", "subject"):
        return pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return pa.types.is_struct(kind) if part == "scores" else pa.types.is_integer(kind)


def _file(value: Any, what: str) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not content:
        raise Unreadable(f"{what} has no bytes; only pictures inside the parquet file are read")
    return content


def _grades(row: ParquetRow) -> dict[str, float]:
    valid = (row["description"] or {}).get("description_valid")
    return _numbers(row.get("quality_assessment")) | ({} if valid is None else {"description_valid": float(valid)})


def _numbers(struct: ParquetRow | None) -> dict[str, float]:
    return {name: float(value) for name, value in (struct or {}).items() if isinstance(value, int | float)}
