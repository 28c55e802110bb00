import io

import numpy as np
import pytest
import skimage.data
from PIL import Image

from mllmsubj.data.example import Unreadable
from mllmsubj.data.images import to_rgb
from mllmsubj.data.pixels import decode, decode_mask, decode_rgb, size_of
from tests.data.sources.pictures import encoded, mask, noise, rotated_jpeg

KINDS = {
    "jpeg": encoded(noise(0)),
    "rotated": rotated_jpeg(1),
    "mirrored": rotated_jpeg(1, orientation=2),
    "transparent": encoded(noise(2, mode="RGBA"), "PNG"),
    "cmyk": encoded(noise(3, mode="CMYK")),
    "grey": encoded(noise(4, mode="L"), "PNG"),
    "webp": encoded(noise(5), "WEBP"),
    "palette": encoded(noise(6).quantize(8), "GIF"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_decode_modes_and_orientation(kind):
    """Files of any mode are decoded as upright RGB images of the size that `size_of` gives."""
    decoded = decode(KINDS[kind], "a")
    assert decoded.mode == "RGB"
    assert decoded.size == size_of(KINDS[kind], "a") == ((32, 48) if kind == "rotated" else (48, 32))
    assert decoded.tobytes() == to_rgb(Image.open(io.BytesIO(KINDS[kind]))).tobytes()


def jpeg(mode="RGB", size=(131, 77), **settings):
    return encoded(Image.fromarray(skimage.data.chelsea()).resize(size).convert(mode), "JPEG", **settings)


JPEGS = {
    "4:4:4": jpeg(subsampling=0),
    "4:2:2": jpeg(subsampling=1),
    "4:2:0": jpeg(subsampling=2),
    "4:1:1": jpeg(subsampling="4:1:1"),
    "poor": jpeg(quality=10),
    "progressive": jpeg(progressive=True),
    "grey": jpeg("L"),
    "not YCbCr": jpeg(keep_rgb=True),
    "tiny": jpeg(size=(1, 3)),
    "and more": jpeg() + b"and more",
}


@pytest.mark.parametrize("kind", KINDS | JPEGS)
def test_decode_rgb_matches_decode(kind):
    pixels = (KINDS | JPEGS)[kind]
    np.testing.assert_array_equal(decode_rgb(pixels, "a"), np.asarray(decode(pixels, "a")))


def test_decode_rgb_damaged_jpeg():
    """Damaged JPEG files give the same pixels or the same error as `decode`."""

    def outcome(read, pixels):
        try:
            return np.asarray(read(pixels, "a")).tobytes()
        except Unreadable as error:
            return str(error)

    rng, good, outcomes = np.random.default_rng(0), JPEGS["4:2:0"], set()
    cuts = [good[:length] for length in (100, len(good) // 2, len(good) - 40, len(good) - 2)]
    flips = [bytearray(good) for _ in range(60)]
    for bad in flips:
        bad[rng.integers(150, len(good))] = rng.integers(256)
    for bad in (*cuts, *map(bytes, flips)):
        outcomes.add(outcome(decode, bad))
        assert outcome(decode_rgb, bad) == outcome(decode, bad)
    assert {type(each) for each in outcomes} == {str, bytes}


def test_size_of_path(tmp_path):
    (tmp_path / "a.jpg").write_bytes(KINDS["rotated"])
    assert size_of(tmp_path / "a.jpg", "a") == (32, 48)
    with pytest.raises(Unreadable, match=r"a cannot be read as a picture: .*No such file"):
        size_of(tmp_path / "b.jpg", "a")


def test_size_of_header_only():
    """The first bytes of a file are enough for `size_of`, but not for `decode`."""
    large = encoded(noise(0, (900, 600)), "PNG")
    assert size_of(large[:100], "a") == (900, 600)
    with pytest.raises(Unreadable):
        decode(large[:100], "a")


def test_decode_array():
    """Arrays are taken as pixels."""
    array = np.asarray(noise(0))
    assert (np.asarray(decode(array, "a")) == array).all()
    assert decode_rgb(array, "a") is array
    assert (np.asarray(decode_mask(array[..., 0], "a")) == array[..., 0]).all()
    assert size_of(array, "a") == size_of(array[..., 0], "a") == (48, 32)


@pytest.mark.parametrize("read", [decode, decode_rgb])
@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (b"", "no picture"),
        (b"not a picture", "no picture"),
        (encoded(noise(0))[:-300], "truncated"),
        (np.zeros((4, 4), np.uint8), r"array \[4, 4\] of uint8; it should be uint8 \[height, width, 3\]"),
        (np.zeros((4, 4, 3), np.float32), "of float32"),
        (np.zeros((0, 4, 3), np.uint8), r"array \[0, 4, 3\]"),
    ],
)
def test_decode_invalid(read, pixels, says):
    """The error starts with the given origin and has one line."""
    with pytest.raises(Unreadable, match=f"^pairs.jsonl:12, target .*{says}") as error:
        read(pixels, "pairs.jsonl:12, target")
    assert "\n" not in str(error.value)


def test_decode_mask_formats():
    """Masks of 1, 8 and 16 bits and alpha channels are decoded as the same 8-bit mask."""
    expected = np.asarray(mask())
    cut_out = Image.new("RGBA", mask().size, "white")
    cut_out.putalpha(mask())
    for file in (encoded(mask(), "PNG"), encoded(mask().convert("1"), "PNG"), encoded(cut_out, "PNG")):
        decoded = decode_mask(file, "a")
        assert decoded.mode == "L"
        assert (np.asarray(decoded) == expected).all()
    deep = Image.fromarray(expected.astype(np.uint16) * 257)
    assert (np.asarray(decode_mask(encoded(deep, "PNG"), "a")) == expected).all()
