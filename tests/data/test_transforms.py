import dataclasses
import io

import numpy as np
import pytest
import skimage.data
from PIL import Image

from mllmsubj.config.data import PromptConfig
from mllmsubj.config.schema import Experiment
from mllmsubj.data.byte_tokenizer import save_tokenizers
from mllmsubj.data.example import Example, Unreadable
from mllmsubj.data.images import mllm_tile, vae_image
from mllmsubj.data.plan import Bucket
from mllmsubj.data.tokenization import PromptEncoder
from mllmsubj.data.transforms import RowReader, center_crop_resize, crop, remove_background
from mllmsubj.errors import UserError
from mllmsubj.inference.request import RequestReader
from tests.data.test_images import CONFIG as REFERENCE
from tests.data.test_plan import config
from tests.small import small_config

CAT, ASTRONAUT = Image.fromarray(skimage.data.chelsea()), Image.fromarray(skimage.data.astronaut())
TILE = 32


def stored(image, format="PNG"):
    file = io.BytesIO()
    image.save(file, format, quality=90)
    return file.getvalue()


def example(*references, prompt="a cat", target=ASTRONAUT, **more):
    return Example(tuple(map(stored, references)), prompt, stored(target), origin="pairs.jsonl:12", **more)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    save_tokenizers(folder)
    prompts = PromptConfig(system="Be brief.", max_tokens=128, pad_to_multiple=16, clip_tokens=77, pooled="prompt")
    return PromptEncoder(folder / "tokenizer", folder / "clip_tokenizer", prompts, image_tokens=4, image_token_id=261)


@pytest.fixture
def reader(encoder):
    def make(**changes):
        return RowReader(config(**changes), REFERENCE, encoder, TILE)

    return make


def read(reader, what, bucket, seed=0):
    """Reads an example into a batch of one row whose arrays held other values before."""
    batch = reader.empty(bucket, 1)
    arrays = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch) if f.name not in ("text", "images")}
    for array in arrays.values():
        array[...] = True if array.dtype == bool else 99
    reader.read(what, bucket, np.random.default_rng(seed), batch, 0)
    return batch


def normalised(tile):
    return (tile / np.float32(255) - np.float32(REFERENCE.mean)) / np.float32(REFERENCE.std)


def check_square(square, mask, picture, several):
    """Checks that a square holds what inference gives the VAE, padded with its last row and column."""
    want = vae_image(picture, several, REFERENCE)
    height, width = want.shape[:2]
    np.testing.assert_array_equal(square[:height, :width] / np.float32(127.5) - 1, want)
    padded = np.pad(square[:height, :width], [(0, len(square) - height), (0, len(square) - width), (0, 0)], "edge")
    np.testing.assert_array_equal(square, padded)
    rows, columns = np.indices((len(square) // 16,) * 2)
    np.testing.assert_array_equal(mask.reshape(rows.shape), (rows < height // 16) & (columns < width // 16))


@pytest.mark.parametrize("picture", [CAT, CAT.transpose(Image.Transpose.ROTATE_90), ASTRONAUT.resize((30, 31))])
def test_row_reader_one_reference(reader, picture):
    """A reference gets the values that inference gives the MLLM and the VAE."""
    batch = read(reader(), example(picture), Bucket(64, 64, 1))
    assert batch.references.shape == (1, 1, 512, 512, 3)
    np.testing.assert_allclose(normalised(batch.tiles[0, 0]), mllm_tile(picture, (TILE, TILE), REFERENCE), atol=1e-6)
    check_square(batch.references[0, 0], batch.reference_mask[0], picture, several=False)


def test_row_reader_several_references(reader):
    """References get the values that inference gives the MLLM and the VAE; those above the limit are dropped."""
    pictures = [CAT, ASTRONAUT.crop((0, 0, 100, 333))]
    batch = read(reader(), example(*pictures, CAT), Bucket(64, 64, 2))
    assert batch.references.shape == (1, 2, 320, 320, 3)
    for i, picture in enumerate(pictures):
        np.testing.assert_allclose(
            normalised(batch.tiles[0, i]), mllm_tile(picture, (TILE, TILE), REFERENCE), atol=1e-6
        )
        check_square(batch.references[0, i], batch.reference_mask[0, 400 * i : 400 * (i + 1)], picture, several=True)


def test_row_reader_long_side_not_multiple(encoder):
    """The padded square holds a long side that is not a multiple of a token."""
    reference = dataclasses.replace(REFERENCE, long_side=500)
    batch = read(RowReader(config(), reference, encoder, TILE), example(CAT), Bucket(64, 64, 1))
    assert batch.references.shape == (1, 1, 512, 512, 3)
    assert batch.reference_mask[0].reshape(32, 32)[:, 0].sum() == round(500 / 451 * 300 / 16)
    assert batch.reference_mask[0].reshape(32, 32)[0].sum() == 31


@pytest.mark.parametrize("pictures", [(CAT,), (CAT, ASTRONAUT.crop((0, 0, 100, 333)))])
def test_row_reader_matches_request(tmp_path, pictures):
    """A row holds the arrays of a request.

    Only a single reference of a request is not padded to a square, which changes no token's position.
    """
    save_tokenizers(tmp_path)
    experiment = Experiment.from_config(small_config())
    request = RequestReader(experiment, tmp_path)(pictures, "a cat on the moon", 1, 0)
    mllm = experiment.model.mllm
    encoder = PromptEncoder(
        tmp_path / "tokenizer",
        tmp_path / "clip_tokenizer",
        experiment.prompt,
        image_tokens=mllm.tokens_per_tile,
        image_token_id=mllm.image_token_id,
    )
    reader = RowReader(config(prompt_tokens=200), experiment.reference, encoder, mllm.vision.image_size)
    batch = read(reader, example(*pictures, prompt="a cat on the moon"), Bucket(64, 64, len(pictures)))
    count = int(request.attention_mask.sum())
    np.testing.assert_array_equal(batch.input_ids[batch.attention_mask], request.input_ids[request.attention_mask])
    assert batch.attention_mask[0, :count].all()
    np.testing.assert_array_equal(batch.clip_ids, request.clip_ids)
    assert (batch.text[0], batch.images) == (request.layout.text[0], request.layout.images)
    for i, reference in enumerate(request.references):
        np.testing.assert_allclose(normalised(batch.tiles[0, i]), request.pixel_values[i], atol=1e-6)
        height, width = reference.shape[1:3]
        assert (height == width) == (len(pictures) > 1)
        np.testing.assert_array_equal(batch.references[0, i, :height, :width] / np.float32(127.5) - 1, reference[0])
    if len(pictures) > 1:
        np.testing.assert_array_equal(request.reference_mask, batch.reference_mask)
        assert 0 < request.reference_mask.mean() < 1
    else:
        assert request.reference_mask is None


@pytest.mark.parametrize("prompt", ["", "x", "a cat on the moon"])
def test_row_reader_prompt_length(reader, prompt):
    """Prompts are padded to one length."""
    batch = read(reader(), example(CAT, prompt=prompt), Bucket(64, 64, 1))
    start, stop = batch.text
    assert stop - start == 64
    assert stop == batch.input_ids.shape[1] == batch.attention_mask.shape[1]
    assert batch.attention_mask[0, start:].sum() == len(prompt) + len("\n<|im_end|>\n<|im_start|>assistant\n") - 9 - 11
    ((first, last),) = batch.images
    np.testing.assert_array_equal(batch.input_ids[0] == 261, (np.arange(stop) >= first) & (np.arange(stop) < last))


def test_row_reader_long_prompt(reader):
    """A prompt that is too long raises Unreadable."""
    with pytest.raises(Unreadable, match=r"pairs\.jsonl:12: the prompt has 7\d tokens; .*prompt_tokens.* at most 64"):
        read(reader(), example(CAT, prompt="z" * 60), Bucket(64, 64, 1))


def test_row_reader_target(reader):
    """The target is scaled and cropped at its center; a target of the right size is not changed."""
    stripes = np.zeros((60, 120, 3), np.uint8)
    stripes[:, 30:90] = 200
    batch = read(reader(), example(CAT, target=Image.fromarray(stripes)), Bucket(64, 64, 1))
    assert batch.target.shape == (1, 64, 64, 3)
    assert (batch.target[:, :, 6:-6] == 200).all()
    same = read(reader(), example(CAT), Bucket(512, 512, 1))
    np.testing.assert_array_equal(same.target[0], np.asarray(ASTRONAUT))


@pytest.mark.parametrize(("size", "want"), [((64, 96), (96, 64)), ((96, 64), (64, 96)), ((32, 32), (32, 32))])
def test_cover(size, want):
    picture = center_crop_resize(np.asarray(CAT), size)
    assert picture.shape == (*size, 3)
    scale = max(want[0] / CAT.width, want[1] / CAT.height)
    whole = CAT.resize((round(CAT.width * scale), round(CAT.height * scale)), Image.Resampling.LANCZOS)
    left, top = (whole.width - want[0]) // 2, (whole.height - want[1]) // 2
    other = whole.crop((left, top, left + want[0], top + want[1]))
    assert np.abs(picture.astype(int) - np.asarray(other, int)).mean() < 4


def test_cover_same_aspect():
    """Without a crop, `center_crop_resize` is Pillow's resize."""
    whole = CAT.resize((452, 300))
    want = whole.resize((113, 75), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(center_crop_resize(np.asarray(whole), (75, 113)), want)


@pytest.mark.parametrize("smallest", [0.05, 0.5, 0.9])
def test_crop_aspect_and_area(smallest):
    array = np.indices((300, 451)).transpose(1, 2, 0).astype(np.uint16)
    places = set()
    for seed in range(50):
        part = crop(np.asarray(CAT), smallest, np.random.default_rng(seed))
        height, width, _ = part.shape
        assert smallest - 0.01 <= width * height / array[..., 0].size <= 1
        assert width / height == pytest.approx(451 / 300, rel=0.02)
        places.add(part.tobytes()[:60])
    assert len(places) > 30


def test_crop_none():
    """A smallest share of 1 does not change the image."""
    cat = np.asarray(CAT)
    np.testing.assert_array_equal(crop(cat, 1.0, np.random.default_rng(0)), cat)


def test_on_white():
    """The background is white where the mask is black."""
    mask = Image.new("L", CAT.size, 0)
    mask.paste(255, (100, 100, 200, 200))
    cat = np.asarray(CAT)
    found = np.array(remove_background(cat, mask, ""))
    np.testing.assert_array_equal(found[100:200, 100:200], cat[100:200, 100:200])
    found[100:200, 100:200] = 255
    assert (found == 255).all()


def test_row_reader_augmentation_shares(reader):
    """With a probability of 0.5, about half of 40 rows have the augmentation and no other change, reproducibly."""
    cat, target = CAT.resize((48, 32)), ASTRONAUT.resize((64, 64))
    mask = Image.new("L", cat.size, 0)
    mask.paste(255, (10, 10, 30, 20))
    what, bucket = example(cat, target=target, masks=(stored(mask),)), Bucket(64, 64, 1)
    mirrored = cat.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    changed = {
        "flip": example(mirrored, target=target),
        "remove_background": example(Image.fromarray(remove_background(np.asarray(cat), mask, "")), target=target),
        "swap": example(target, target=cat),
    }
    plain = read(reader(), what, bucket)
    for name, other in changed.items():
        other, count = read(reader(), other, bucket), 0
        for seed in range(40):
            rows = [read(reader(**{name: 0.5}), what, bucket, seed) for _ in range(2)]
            for field in ("tiles", "references", "reference_mask", "target"):
                np.testing.assert_array_equal(getattr(rows[0], field), getattr(rows[1], field))
            is_changed = (rows[0].tiles == other.tiles).all()
            want = other if is_changed else plain
            for field in ("tiles", "references", "reference_mask", "target"):
                np.testing.assert_array_equal(getattr(rows[0], field), getattr(want, field))
            count += bool(is_changed)
        assert 10 < count < 30, name


def test_row_reader_swap_without_mask(reader):
    """A swapped target has no mask; the reference's mask of another size would be an error."""
    what = example(CAT, masks=(stored(Image.new("L", CAT.size, 0)),))
    batch = read(reader(swap=1.0, remove_background=1.0), what, Bucket(64, 64, 1))
    check_square(batch.references[0, 0], batch.reference_mask[0], ASTRONAUT, several=False)


def test_row_reader_swap_several_references(reader):
    """Examples with several references are not swapped."""
    what = example(CAT, CAT)
    for count in (1, 2):  # a bucket of one reference drops the second, but the example has it
        batch = read(reader(swap=1.0), what, Bucket(512, 512, count))
        np.testing.assert_array_equal(batch.target[0], np.asarray(ASTRONAUT))


BAD = {
    "reference": (dict(references=(b"no picture",)), r"pairs\.jsonl:12, reference 1 is no picture"),
    "target": (dict(target=b"no picture"), r"pairs\.jsonl:12, target is no picture"),
    "mask": (dict(masks=(b"no picture",)), r"pairs\.jsonl:12, reference 1's mask is no picture"),
    "mask size": (dict(masks=(stored(Image.new("L", (9, 9))),)), "reference 1 is 451x300 and its mask 9x9"),
    "thin": (dict(references=(stored(Image.new("RGB", (90, 10))),)), r"pairs\.jsonl:12: reference image 1 is 90x10"),
    "none": (dict(references=()), r"pairs\.jsonl:12 has 0 references"),
}


@pytest.mark.parametrize(("changes", "says"), BAD.values(), ids=BAD)
def test_row_reader_invalid_example(reader, changes, says):
    """The error names the example and its image, in one line."""
    with pytest.raises(Unreadable, match=says) as error:
        read(reader(remove_background=1.0), dataclasses.replace(example(CAT), **changes), Bucket(64, 64, 1))
    assert "\n" not in str(error.value)


def test_row_reader_max_references(reader):
    """`data.max_references` cannot exceed `reference.max_references`."""
    with pytest.raises(UserError, match=r"data\.max_references is 3, above reference\.max_references, 2"):
        reader(max_references=3)
