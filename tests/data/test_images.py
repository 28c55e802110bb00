import warnings

import numpy as np
import pytest
import skimage.data
from PIL import Image

from mllmsubj.config.data import ReferenceConfig
from mllmsubj.data.images import check_references, mllm_tile, open_image, to_pil, to_rgb, vae_image
from mllmsubj.errors import UserError

CONFIG = ReferenceConfig(
    long_side=512,
    long_side_multi=320,
    max_references=2,
    max_aspect=8.0,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
CAT = Image.fromarray(skimage.data.chelsea()).resize((90, 60))
ORIENTED = {  # EXIF orientation -> the transposition that makes the stored image of the upright one
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def stored(folder, image, suffix=".png", **options):
    path = folder / f"picture{suffix}"
    image.save(path, **options)
    return path


def mode_of(path):
    with Image.open(path) as image:
        return image.mode


def pixels(image):
    assert (image.mode, image.size) == ("RGB", CAT.size)
    return np.asarray(image).astype(int)


def corner(colour, size=(8, 8)):
    """Returns a black RGBA image whose left half is `colour`."""
    array = np.zeros((*size[::-1], 4), np.uint8)
    array[..., 3] = 255
    array[:, : size[0] // 2] = colour
    return Image.fromarray(array)


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [
        ("RGB", ".png", 0),
        ("RGB", ".tiff", 0),
        ("RGB", ".bmp", 0),
        ("RGB", ".webp", 12),
        ("RGB", ".jpg", 12),
        ("YCbCr", ".jpg", 12),
        ("CMYK", ".jpg", 12),
        ("CMYK", ".tiff", 2),
        ("P", ".png", 40),
        ("P", ".gif", 40),
        ("RGBA", ".png", 0),
    ],
)
def test_open_image_color(tmp_path, mode, suffix, tolerance):
    """Color images of any mode and format are read as RGB."""
    found = pixels(open_image(stored(tmp_path, CAT.convert(mode), suffix)))
    assert np.abs(found - pixels(CAT)).mean() <= tolerance / 2


@pytest.mark.parametrize(("mode", "suffix"), [("L", ".png"), ("L", ".jpg"), ("LA", ".png"), ("1", ".png")])
def test_open_image_grayscale(tmp_path, mode, suffix):
    """Grayscale images are read as RGB with three equal channels."""
    image = CAT.convert(mode)
    found = pixels(open_image(stored(tmp_path, image, suffix)))
    np.testing.assert_allclose(found, pixels(image.convert("L").convert("RGB")), atol=40 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("scale", [1.0, 0.003], ids=["bright", "dark"])
def test_open_image_uint16(tmp_path, scale):
    """16-bit values are scaled by the range of their type, whatever the brightest value is."""
    wide = (np.asarray(CAT.convert("L")) * 257.0 * scale).astype(np.uint16)
    path = stored(tmp_path, Image.fromarray(wide))
    assert mode_of(path) == "I;16"
    np.testing.assert_allclose(pixels(open_image(path))[..., 0], wide / 257, atol=0.51)


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_open_image_float_tiff(tmp_path, top):
    """The largest value decides whether floats are of the range 1, 255 or 65535."""
    grey = np.asarray(CAT.convert("L"), np.float32)
    path = stored(tmp_path, Image.fromarray(grey / 255 * top), ".tiff")
    assert mode_of(path) == "F"
    np.testing.assert_allclose(pixels(open_image(path))[..., 0], grey, atol=1)


@pytest.mark.parametrize("top", [255, 65535])
def test_open_image_integer_tiff(tmp_path, top):
    """The largest value decides whether integers are of the range 255 or 65535."""
    grey = np.asarray(CAT.convert("L"), np.int32)
    path = stored(tmp_path, Image.fromarray(grey * (top // 255)), ".tiff")
    assert mode_of(path) == "I"
    np.testing.assert_allclose(pixels(open_image(path))[..., 0], grey, atol=1)


def test_to_rgb_nonfinite_values():
    """Non-finite and negative values become black."""
    values = np.full((8, 8), 0.5, np.float32)
    values[0, :3] = np.nan, -np.inf, -1.0
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(values)))[0, :4, 0], [0, 0, 0, 128])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_to_rgb_transparent(mode):
    """Transparent pixels become white."""
    image = corner((200, 200, 200, 0))
    found = np.asarray(to_rgb(image.quantize(4) if mode == "P" else image.convert(mode)))
    assert (found[:, :4] == 255).all()
    assert (found[:, 4:] == 0).all()


def test_to_rgb_partly_transparent():
    """Partly transparent pixels are blended with white."""
    found = np.asarray(to_rgb(corner((200, 0, 0, 128))))
    np.testing.assert_allclose(found[0, 0], [227, 127, 127], atol=1)


@pytest.mark.parametrize(("mode", "value"), [("P", 0), ("L", 0), ("RGB", (0, 0, 0))])
def test_open_image_transparent_color(tmp_path, mode, value):
    """Pixels of the color that a PNG declares transparent become white."""
    image = corner((0, 0, 0, 255)).convert("RGB").convert(mode)
    image.paste(image.getpixel((0, 0)) if mode == "P" else 90 if mode == "L" else (90, 0, 0), (4, 0, 8, 8))
    if mode == "P":
        image = Image.fromarray(np.repeat([[0, 1]], 8, 0).repeat(4, 1).astype(np.uint8), "L").convert("P")
        image.putpalette([0, 0, 0, 90, 0, 0])
    found = np.asarray(open_image(stored(tmp_path, image, transparency=value)))
    assert (found[:, :4] == 255).all()
    assert (found[:, 4:, 0] == 90).all()


@pytest.mark.parametrize("suffix", [".gif", ".tiff", ".png", ".webp"])
def test_open_image_first_frame(tmp_path, suffix):
    """The first frame of an image with several is read, also after a seek."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    lossless = dict(lossless=True) if suffix == ".webp" else {}
    path = stored(tmp_path, frames[0], suffix, save_all=True, append_images=frames[1:], **lossless)
    with Image.open(path) as image:
        assert image.n_frames == 3
        image.seek(2)
        assert to_rgb(image).getpixel((8, 8)) == (255, 0, 0)
    assert open_image(path).getpixel((8, 8)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", ORIENTED)
def test_open_image_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = CAT if ORIENTED[orientation] is None else CAT.transpose(ORIENTED[orientation])
    np.testing.assert_array_equal(pixels(open_image(stored(tmp_path, turned, exif=exif))), pixels(CAT))


def test_to_rgb_copies():
    """The result shares no memory with the given image."""
    image = corner((200, 0, 0, 0))
    before = image.copy()
    to_rgb(image).paste("blue", (0, 0, 8, 8))
    assert image == before


def broken(folder, kind):
    photo = stored(folder, CAT, ".jpg" if "JPEG" in kind else ".png")
    if kind.startswith("half"):
        photo.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    elif kind == "missing":
        photo.unlink()
    elif kind == "folder":
        return folder
    else:
        photo.write_bytes({"empty": b"", "text": b"not a picture", "header": photo.read_bytes()[:20]}[kind])
    return photo


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "not there"),
        ("folder", "no file"),
        ("empty", "no picture"),
        ("text", "no picture"),
        ("header", "cannot be read"),
        ("half JPEG", "truncated"),
        ("half PNG", "truncated"),
    ],
)
def test_open_image_invalid_file(tmp_path, kind, says):
    """The error names the file, in one line."""
    path = broken(tmp_path, kind)
    with pytest.raises(UserError, match=says) as error:
        open_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_open_image_too_many_pixels(tmp_path, monkeypatch):
    """An image of more than twice Pillow's limit is an error."""
    path = stored(tmp_path, CAT)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", CAT.width * CAT.height - 1)  # Pillow itself warns up to twice this
    assert open_image(path).size == CAT.size
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", CAT.width * CAT.height // 2 - 1)
    with pytest.raises(UserError, match=r"picture\.png.*too many pixels"):
        open_image(path)


def test_open_image_corrupted_bytes(tmp_path):
    """Corrupted files are read as RGB or raise UserError; there are no warnings and no other exceptions."""
    rng = np.random.default_rng(0)
    for suffix in (".png", ".jpg", ".gif", ".tiff", ".webp", ".bmp"):
        path = stored(tmp_path, CAT, suffix)
        good = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(25):
            bad = good.copy()
            bad[rng.integers(len(bad), size=4)] = rng.integers(256, size=4)
            bad[rng.integers(min(len(bad), 120))] ^= 0xFF
            path.write_bytes(bad.tobytes())
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    assert open_image(path).mode == "RGB"
                except UserError as error:
                    assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("size", "several", "want"),
    [
        ((451, 300), False, (336, 512)),
        ((300, 451), False, (512, 336)),
        ((451, 300), True, (208, 320)),
        ((20, 20), False, (512, 512)),
        ((4000, 600), False, (80, 512)),
        ((800, 1), True, (16, 320)),
    ],
)
def test_vae_picture_sizes(size, several, want):
    picture = vae_image(Image.new("RGB", size, (255, 0, 51)), several, CONFIG)
    assert picture.shape == (*want, 3)
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture[0, 0], [1, -1, -0.6], atol=1e-6)


def test_vae_picture_round_trip():
    """`to_pil` inverts `vae_image`."""
    picture = vae_image(Image.fromarray(skimage.data.astronaut()), False, CONFIG)
    np.testing.assert_array_equal(np.asarray(to_pil(picture)), skimage.data.astronaut())


def test_to_pil_clip_and_round():
    values = np.array([-9, -1, -0.001, 0.0, 1.0, 9], np.float32)
    found = np.asarray(to_pil(np.broadcast_to(values[None, :, None], (1, 6, 3))))
    np.testing.assert_array_equal(found[0, :, 0], [0, 0, 127, 128, 255, 255])


def test_mllm_tile_normalization():
    tile = mllm_tile(Image.new("RGB", (50, 20), (255, 0, 51)), (32, 48), CONFIG)
    assert tile.shape == (32, 48, 3)
    assert tile.dtype == np.float32
    np.testing.assert_allclose(tile[5, 7], [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225], atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ([], "no reference image"),
        ([(9, 9)] * 3, "3 reference images.* at most 2"),
        ([(9, 9), (81, 10)], "reference image 2 is 81x10.* 8 times"),
        ([(1, 9)], "reference image 1 is 1x9"),
    ],
)
def test_check_references_invalid(sizes, says):
    with pytest.raises(UserError, match=says):
        check_references([Image.new("RGB", size) for size in sizes], CONFIG)


def test_check_references_at_limits():
    """The largest number of references and the largest aspect ratio are allowed."""
    check_references([Image.new("RGB", (80, 10)), Image.new("RGB", (10, 80))], CONFIG)
