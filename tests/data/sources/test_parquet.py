import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mllmsubj.data.example import Unreadable
from mllmsubj.data.sources import open_named
from mllmsubj.errors import UserError
from tests.data.sources.pictures import encoded, mask, noise, rotated_jpeg


def opened(path):
    return open_named(str(path), "train", 1, 64, 0)


def picture(content):
    """Returns a cell as Hugging Face stores an image."""
    return dict(bytes=content, path=None)


def composite(seed, size=(1056, 528)):
    """Returns an image of coarse noise: different crops differ, and files are small."""
    return encoded(noise(seed, (66, 33)).resize(size, Image.Resampling.NEAREST), "PNG")


def subject_row(i, **changes):
    description = dict(item="Chair", description_0=f"left {i}", description_1=f"right {i}", description_valid=True)
    quality = dict(compositeStructure=5, objectConsistency=4 + i % 2, imageQuality=3)
    row = dict(image=picture(composite(i)), collection="collection_1", quality_assessment=quality)
    return row | dict(description=description) | changes


def write(path, rows, group=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)


def pixels(file):
    return np.asarray(Image.open(io.BytesIO(file)))


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """A folder of five rows in two files; the last row has no scores."""
    folder = tmp_path_factory.mktemp("subjects")
    write(folder / "data" / "train-00000-of-00002.parquet", [subject_row(i) for i in range(3)])
    write(folder / "data" / "train-00001-of-00002.parquet", [subject_row(3), subject_row(4, quality_assessment=None)])
    return folder


def test_subjects200k_crops(subjects):
    """OminiControl's crops are 512 pixels wide, at 8 and at 528."""
    source = opened(subjects)
    assert len(source) == 10
    whole = pixels(composite(1))
    left, right = whole[8:520, 8:520], whole[8:520, 528:1040]
    first, second = source[2], source[3]
    assert (first.prompt, second.prompt, first.subject) == ("left 1", "right 1", "Chair")
    assert (first.target == left).all()
    assert (first.references[0] == right).all()
    assert (second.target == right).all()
    assert (second.references[0] == left).all()
    assert first.scores == dict(compositeStructure=5, objectConsistency=5, imageQuality=3, description_valid=1)
    assert first.origin == second.origin == "train-00000-of-00002.parquet, row 1"
    assert source[9].origin == "train-00001-of-00002.parquet, row 1"


def test_subjects200k_index(subjects):
    index = opened(subjects).index()
    assert index.width.tolist() == index.height.tolist() == [512] * 10
    consistency = index.scores["objectConsistency"]
    np.testing.assert_array_equal(consistency, np.float32([4, 4, 5, 5, 4, 4, 5, 5, np.nan, np.nan]))
    assert index.scores["description_valid"].tolist() == [1] * 10


@pytest.mark.parametrize(
    ("size", "side", "lefts", "top"),
    [
        ((1056, 528), 512, (8, 528), 8),
        ((2112, 1056), 1024, (16, 1056), 16),
        ((2048, 1024), 1024, (0, 1024), 0),
        ((1048, 528), 512, (8, 528), 8),
        ((1072, 544), 512, (16, 544), 16),
    ],
)
def test_subjects200k_composite_sizes(tmp_path, size, side, lefts, top):
    """Composites of other sizes are cropped in proportion."""
    write(tmp_path / "a.parquet", [subject_row(0, image=picture(composite(0, size)))])
    source, whole = opened(tmp_path), pixels(composite(0, size))
    views = [whole[top : top + side, left : left + side] for left in lefts]
    assert (source[0].target == views[0]).all()
    assert (source[1].target == views[1]).all()
    assert source.index().width.tolist() == [side] * 2


def test_subjects200k_invalid_rows(tmp_path):
    """Rows without a composite image or a description raise Unreadable."""
    rows = [
        subject_row(0, image=picture(composite(0, (500, 500)))),
        subject_row(1, image=picture(b"nothing")),
        subject_row(2, image=None),
        subject_row(3, description=None),
        subject_row(4),
    ]
    write(tmp_path / "a.parquet", rows)
    source = opened(tmp_path)
    for number, says in ((0, "500x500"), (2, "no picture"), (4, "no bytes"), (6, "no description_0")):
        with pytest.raises(Unreadable, match=f"a.parquet, row {number // 2}.*{says}"):
            source[number]
    assert source.index().width.tolist() == [0] * 6 + [512] * 4
    assert source[8].prompt == "left 4"


def pair_row(i, **changes):
    row = dict(references=[picture(encoded(noise(i)))] * (1 + i % 2), target=picture(rotated_jpeg(10 + i)))
    row |= dict(caption=f"number {i}", subject="dog" if i else None, scores=dict(dino=i / 8))
    return row | dict(masks=[picture(encoded(mask(), "PNG")), None][: 1 + i % 2]) | changes


def test_pairs_all_columns(tmp_path):
    rows = [pair_row(i) for i in range(5)]
    write(tmp_path / "below" / "a.parquet", rows)
    source = opened(tmp_path)
    for number, (example, row) in enumerate(zip(source, rows, strict=True)):
        assert example.references == tuple(each["bytes"] for each in row["references"])
        assert example.masks == tuple(each and each["bytes"] for each in row["masks"])
        assert (example.target, example.prompt) == (row["target"]["bytes"], row["caption"])
        assert (example.subject, example.scores) == (row["subject"] or "", row["scores"])
        assert example.origin == f"a.parquet, row {number}"
    index = source.index()
    assert (index.width.tolist(), index.height.tolist()) == ([32] * 5, [48] * 5)
    assert index.references.tolist() == [1, 2, 1, 2, 1]
    assert index.scores["dino"].tolist() == [0, 1 / 8, 2 / 8, 3 / 8, 4 / 8]


def test_pairs_binary_columns_and_sizes(tmp_path):
    """The columns width and height are used without reading the images."""
    first, second = encoded(noise(0)), encoded(noise(1))
    write(tmp_path / "a.parquet", [dict(image1=first, image2=second, prompt="p", width=640, height=480)] * 3)
    source = opened(tmp_path)
    example = source[2]
    assert (example.references, example.target, example.prompt) == ((first,), second, "p")
    assert (source.index().width.tolist(), source.index().references.tolist()) == ([640] * 3, [1] * 3)


def test_pairs_empty_cells(tmp_path):
    """Rows without a prompt, a reference or a target raise Unreadable."""
    rows = [pair_row(0), pair_row(1, caption=None), pair_row(0, references=[]), pair_row(0, target=picture(None))]
    write(tmp_path / "a.parquet", rows)
    source = opened(tmp_path)
    for number, says in ((1, "no prompt"), (2, "no reference"), (3, "target has no bytes")):
        with pytest.raises(Unreadable, match=f"row {number},? {says}|row {number} has {says}"):
            source[number]


def test_parquet_threads_share_row_groups(tmp_path, monkeypatch):
    """Each row group is read once, also by several threads."""
    write(tmp_path / "a.parquet", [pair_row(i) for i in range(40)], group=10)
    source = opened(tmp_path)
    reads, read = [], source._read
    monkeypatch.setattr(source, "_read", lambda group, columns: reads.append(group) or read(group, columns))
    with ThreadPoolExecutor(8) as pool:
        prompts = list(pool.map(lambda number: source[number].prompt, range(40)))
    assert prompts == [f"number {i}" for i in range(40)]
    assert sorted(reads) == [0, 1, 2, 3]


def test_parquet_row_group_cache_size(tmp_path):
    """At most four row groups are held in memory."""
    write(tmp_path / "a.parquet", [pair_row(i) for i in range(20)], group=1)
    source = opened(tmp_path)
    assert len(list(source)) == 20
    assert len(source._kept) == 4


def test_parquet_unknown_columns(tmp_path):
    """The error names the columns of the file and those that are supported."""
    write(tmp_path / "a.parquet", [dict(picture=b"a", label=3)])
    with pytest.raises(UserError) as error:
        opened(tmp_path)
    for word in ("a.parquet", "picture (binary)", "label (int64)", "description_0", "prompt|caption", "target|image2"):
        assert word in str(error.value)
    write(tmp_path / "a.parquet", [dict(reference="a.jpg", target="b.jpg", prompt="p")])
    with pytest.raises(UserError, match=r"reference \(string\)"):
        opened(tmp_path)


def test_parquet_invalid_files(tmp_path):
    """Files with different columns, damaged files and files without rows are errors."""
    write(tmp_path / "a.parquet", [pair_row(0)])
    write(tmp_path / "b.parquet", [dict(reference=b"a", target=b"b", prompt="p")])
    with pytest.raises(UserError, match=r"b.parquet: column references is missing; in a.parquet it is list"):
        opened(tmp_path)
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"b.parquet cannot be read as parquet"):
        opened(tmp_path)
    (tmp_path / "b.parquet").unlink()
    pq.write_table(pa.Table.from_pylist([pair_row(0)]).slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no rows"):
        opened(tmp_path)


def test_parquet_damaged_row_group(tmp_path):
    """Rows of a damaged row group raise Unreadable; the others can be read."""
    write(tmp_path / "a.parquet", [pair_row(i) for i in range(4)], group=2)
    source = opened(tmp_path)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:400] = bytes(396)
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(Unreadable, match="row group 0 cannot be read"):
        source[0]
    assert source[3].prompt == "number 3"
