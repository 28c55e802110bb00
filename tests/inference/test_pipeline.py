"""`Pipeline`; all tests that need a loaded one are here, so that a single pytest worker loads it."""

import errno
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import skimage.data
from PIL import Image

import mllmsubj
from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.checkpoints.format import TINY
from mllmsubj.config.schema import Experiment
from mllmsubj.errors import UserError
from mllmsubj.inference import pipeline as module
from mllmsubj.inference.pipeline import Pipeline, Result
from mllmsubj.models.layers import unstack
from mllmsubj.models.lora import merge_lora
from mllmsubj.models.subject import SubjectModel
from tests.small import random_like, small_config
from tests.train.runs import on_one_device

CAT, COFFEE = (Image.fromarray(picture()) for picture in (skimage.data.chelsea, skimage.data.coffee))
CONFIG = small_config()
CONFIG.model.transformer.update(num_layers=1, num_single_layers=1)
FAST = dict(steps=3, height=64, width=48)
PROMPT = "ein Kätzchen 🐈 auf dem 月"


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch, module)
        yield


@pytest.fixture(scope="module")
def params():
    """Random parameters of the small config, as in a checkpoint; adapters are not zero."""
    experiment = Experiment.from_config(CONFIG)
    model = SubjectModel(experiment.model, experiment.compute.resolve()).stacked
    return jax.tree.map(np.asarray, random_like(model.abstract_params()))


@pytest.fixture(scope="module")
def folder(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    checkpoint.save(folder, CONFIG, params, TINY)
    return folder


@pytest.fixture(scope="module")
def pipe(folder, one_device):
    return mllmsubj.Pipeline.load(folder)


@pytest.fixture(scope="module")
def drawn(pipe):
    return pipe.generate(CAT, PROMPT, num_images=3, seed=7, **FAST)


@pytest.fixture
def saved(folder, tmp_path):
    """A folder with hard links to the checkpoint's files, which a test may damage."""
    for path in folder.rglob("*"):
        if path.is_file():
            copy = tmp_path / "copy" / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.hardlink_to(path)
    return tmp_path / "copy"


def pixels(result):
    return np.stack([np.asarray(image) for image in result.images]).astype(int)


def test_generate_size_and_metadata(folder, drawn):
    assert [image.size for image in drawn.images] == [(48, 64)] * 3
    assert pixels(drawn).std() > 1
    for i, metadata in enumerate(drawn.metadata):
        want = dict(prompt=PROMPT, seed=7, index=i, steps=3, height=64, width=48, tau1=0.83, references=[None])
        assert metadata.items() >= want.items()
        assert metadata["checkpoint"] == checkpoint.fingerprint(folder)


def test_generate_deterministic(pipe, drawn):
    """The same seed gives the same images."""
    again = pipe.generate(CAT, PROMPT, num_images=3, seed=7, **FAST)
    np.testing.assert_array_equal(pixels(again), pixels(drawn))


def test_generate_batch_invariance(pipe, drawn):
    """Images do not depend on their number or on the batch size."""
    alone = pipe.generate([CAT], PROMPT, seed=7, **FAST)
    np.testing.assert_allclose(pixels(alone)[0], pixels(drawn)[0], atol=1)
    batched = pipe.generate([CAT], PROMPT, num_images=3, seed=7, batch_size=1, **FAST)
    np.testing.assert_allclose(pixels(batched), pixels(drawn), atol=1)


def test_generate_input_dependence(pipe, drawn):
    """Images change with their index, the seed, the prompt, the references and the guidance."""
    first = pixels(drawn)
    assert np.abs(first[0] - first[1]).mean() > 1
    for change in (dict(seed=8), dict(prompt="a dog"), dict(references=COFFEE), dict(guidance=9.0)):
        other = pixels(pipe.generate(**dict(references=CAT, prompt=PROMPT, num_images=3, seed=7) | FAST | change))
        assert (other != first).any(), change


def test_generate_progress(pipe, drawn, capsys):
    """A progress bar does not change the images."""
    watched = pipe.generate(CAT, PROMPT, num_images=3, seed=7, progress=True, **FAST)
    np.testing.assert_allclose(pixels(watched), pixels(drawn), atol=1)
    assert "/3 [" in capsys.readouterr().err


def test_generate_reference_types(pipe, drawn, tmp_path):
    """References may be paths or images, in a sequence or alone."""
    path = tmp_path / "cat.png"
    CAT.save(path)
    for references, names in ((str(path), ["cat.png"]), (path, ["cat.png"]), ([path], ["cat.png"]), ((CAT,), [None])):
        result = pipe.generate(references, PROMPT, num_images=3, seed=7, **FAST)
        np.testing.assert_array_equal(pixels(result), pixels(drawn))
        assert result.metadata[0]["references"] == names


def test_generate_two_references(pipe):
    """The order of references changes the image."""
    pair, swapped = (pipe.generate(images, "x", **FAST) for images in ([CAT, COFFEE], [COFFEE, CAT]))
    assert pixels(pair).shape == (1, 64, 48, 3)
    assert (pixels(pair) != pixels(swapped)).any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(stepz=3), r"stepz \(did you mean 'steps'\?\)"),
        (dict(steps="4"), "steps is '4'; expected int"),
        (dict(steps=0), "steps is 0"),
        (dict(height=100), "height is 100.*such as 96"),
        (dict(tau1=0.2), r"tau1=0\.2, tau2=0\.59"),
        (dict(prompt=" \n"), "no prompt"),
        (dict(prompt="a\udcff"), "not valid UTF-8"),
        (dict(prompt="z" * 5000), "at most 512"),
        (dict(num_images=0), "num_images is 0"),
        (dict(seed=-1), "seed is -1"),
        (dict(seed=2**32), "seed is 4294967296"),
        (dict(references=[]), "no reference image"),
        (dict(references=[CAT] * 5), "5 reference images.* at most 4"),
        (dict(references="nowhere.png"), r"nowhere\.png.* not there"),
        (dict(references=[CAT, Image.new("RGB", (900, 10))]), "reference image 2 is 900x10"),
    ],
)
def test_generate_invalid_request(pipe, change, says):
    with pytest.raises(UserError, match=says):
        pipe.generate(**dict(references=CAT, prompt="x") | change)


def test_generate_seed_limits(pipe):
    """The smallest and largest seeds are valid, and so are NumPy scalars."""
    for seed in (0, 2**32 - 1):
        assert len(pipe.generate(CAT, "x", seed=seed, guidance=np.float64(0.5), **FAST).images) == 1


def test_load_params(pipe, params):
    """Loaded parameters are the saved ones with adapters merged and layers unstacked."""
    config = pipe.experiment.model.lora
    merged = jax.jit(lambda params: unstack(params | {"transformer": merge_lora(params["transformer"], config)}))(
        params
    )
    jax.tree.map(np.testing.assert_array_equal, pipe.params, merged)


def test_load_again_equal_images(pipe, folder, drawn):
    again = Pipeline.load(str(folder))
    again._generator = pipe._generator  # compiled already
    result = again.generate(CAT, PROMPT, num_images=3, seed=7, **FAST)
    np.testing.assert_array_equal(pixels(result), pixels(drawn))


def test_load_offload(folder, drawn):
    """With CPU offload, parameters are in host memory, and images are the same."""
    turns = Pipeline.load(folder, offload=True)
    assert {type(leaf) for leaf in jax.tree.leaves(turns.params)} == {np.ndarray}
    np.testing.assert_array_equal(pixels(turns.generate(CAT, PROMPT, num_images=3, seed=7, **FAST)), pixels(drawn))


@pytest.mark.slow
def test_load_int8_offload(folder, params, drawn):
    """With int8, images are the same with and without offload, and adapters are not quantized."""
    here, turns = (Pipeline.load(folder, frozen_dtype="int8", offload=offload) for offload in (False, True))
    first, again = (pixels(each.generate(CAT, PROMPT, num_images=3, seed=7, **FAST)) for each in (here, turns))
    np.testing.assert_array_equal(again, first)
    assert 0 < np.abs(first - pixels(drawn)).mean() < 4
    block, whole = here.params["transformer"]["double_blocks"]["0"]["attn"]["to_q"], params["transformer"]
    assert block["kernel"].dtype == np.int8
    np.testing.assert_array_equal(block["lora_a"], whole["double_blocks"]["attn"]["to_q"]["lora_a"][0])


def test_load_without_adapters(params, folder, pipe, tmp_path):
    """A checkpoint with merged adapters gives the same parameters."""
    config = checkpoint.read_config(folder)
    scale, config.model.lora = pipe.experiment.model.lora, None
    merged = params | {"transformer": jax.jit(lambda tree: merge_lora(tree, scale))(params["transformer"])}
    checkpoint.save(tmp_path / "merged", config, merged, TINY)
    plain = Pipeline.load(tmp_path / "merged")
    jax.tree.map(np.testing.assert_array_equal, plain.params, pipe.params)
    assert plain.checkpoint != pipe.checkpoint


def test_load_shape_mismatch(saved):
    config = checkpoint.read_config(saved)
    config.model.lora.rank = 8
    with pytest.raises(UserError, match=r"lora_\w is \(.*16.*\), the config says \(.*8.*\(and \d+ more\)"):
        Pipeline.load(saved, config)


@pytest.mark.parametrize("missing", ["config.json", "params", "tokenizer", "clip_tokenizer", "folder"])
def test_load_missing_files(saved, missing):
    (saved if missing == "folder" else saved / missing).rename(saved.parent / "elsewhere")
    with pytest.raises(UserError, match="copy.*config.json" if missing == "folder" else f"copy.*{missing}") as error:
        Pipeline.load(saved)
    assert "\n" not in str(error.value)


def test_load_truncated_file(saved):
    largest = max((saved / "params").rglob("*"), key=lambda path: path.stat().st_size)
    half = largest.read_bytes()[: largest.stat().st_size // 2]
    largest.unlink()  # a link
    largest.write_bytes(half)
    with pytest.raises(UserError, match=rf"damaged: params/.*{largest.name} has {len(half)} bytes"):
        Pipeline.load(saved)


def test_result_save_metadata(drawn, tmp_path):
    path = tmp_path / "new" / "cat.png"
    drawn.save(path, 1)
    assert [file.name for file in path.parent.iterdir()] == ["cat.png"]
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels(drawn)[1])
        assert json.loads(image.text["mllmsubj"]) == drawn.metadata[1]
        assert image.text["Description"] == PROMPT
        assert image.text["Software"].startswith("mllmsubj ")


def small_result():
    return Result([CAT], [dict(prompt="x", index=0)])


def test_result_save_disk_full(tmp_path, monkeypatch):
    """A failed save leaves the existing file as it was."""
    path = tmp_path / "cat.png"
    path.write_text("before")

    def full(self, file, **_):
        Path(file).write_text("half a picture")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(UserError, match=r"cannot write .*cat\.png': No space left"):
            small_result().save(path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("cat.png", "before")]
    small_result().save(path)
    with Image.open(path) as image:
        assert image.size == CAT.size


@pytest.mark.parametrize("where", ["file/cat.png", "file/deep/cat.png", "folder"])
def test_result_save_invalid_path(tmp_path, where):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=rf"cannot write .*{where}") as error:
        small_result().save(tmp_path / where)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
