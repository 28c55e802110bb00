"""Everything that needs the loaded pipeline is in this file, so that one worker loads it once."""

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
    """Random parameters of the small config, as a checkpoint holds them; adapters are not zero."""
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
    """A folder with links to the checkpoint's files, to be damaged."""
    for path in folder.rglob("*"):
        if path.is_file():
            copy = tmp_path / "copy" / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.hardlink_to(path)
    return tmp_path / "copy"


def pixels(result):
    return np.stack([np.asarray(image) for image in result.images]).astype(int)


def test_sizes_and_metadata(folder, drawn):
    assert [image.size for image in drawn.images] == [(48, 64)] * 3
    assert pixels(drawn).std() > 1
    for i, metadata in enumerate(drawn.metadata):
        want = dict(prompt=PROMPT, seed=7, index=i, steps=3, height=64, width=48, tau1=0.83, references=[None])
        assert metadata.items() >= want.items()
        assert metadata["checkpoint"] == checkpoint.fingerprint(folder)


def test_the_same_seed_is_the_same_picture(pipe, drawn):
    again = pipe.generate(CAT, PROMPT, num_images=3, seed=7, **FAST)
    np.testing.assert_array_equal(pixels(again), pixels(drawn))


def test_pictures_do_not_depend_on_their_number(pipe, drawn):
    alone = pipe.generate([CAT], PROMPT, seed=7, **FAST)
    np.testing.assert_allclose(pixels(alone)[0], pixels(drawn)[0], atol=1)
    batched = pipe.generate([CAT], PROMPT, num_images=3, seed=7, batch_size=1, **FAST)
    np.testing.assert_allclose(pixels(batched), pixels(drawn), atol=1)


def test_what_changes_pictures(pipe, drawn):
    first = pixels(drawn)
    assert np.abs(first[0] - first[1]).mean() > 1
    for change in (dict(seed=8), dict(prompt="a dog"), dict(references=COFFEE), dict(guidance=9.0)):
        other = pixels(pipe.generate(**dict(references=CAT, prompt=PROMPT, num_images=3, seed=7) | FAST | change))
        assert (other != first).any(), change


def test_progress_changes_nothing(pipe, drawn, capsys):
    watched = pipe.generate(CAT, PROMPT, num_images=3, seed=7, progress=True, **FAST)
    np.testing.assert_allclose(pixels(watched), pixels(drawn), atol=1)
    assert "/3 [" in capsys.readouterr().err


def test_references_may_be_paths_pictures_or_one(pipe, drawn, tmp_path):
    path = tmp_path / "cat.png"
    CAT.save(path)
    for references, names in ((str(path), ["cat.png"]), (path, ["cat.png"]), ([path], ["cat.png"]), ((CAT,), [None])):
        result = pipe.generate(references, PROMPT, num_images=3, seed=7, **FAST)
        np.testing.assert_array_equal(pixels(result), pixels(drawn))
        assert result.metadata[0]["references"] == names


def test_several_references(pipe):
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
def test_what_cannot_be_drawn(pipe, change, says):
    with pytest.raises(UserError, match=says):
        pipe.generate(**dict(references=CAT, prompt="x") | change)


def test_extreme_seeds_and_numpys_numbers(pipe):
    for seed in (0, 2**32 - 1):
        assert len(pipe.generate(CAT, "x", seed=seed, guidance=np.float64(0.5), **FAST).images) == 1


def test_parameters_are_those_that_were_saved(pipe, params):
    config = pipe.experiment.model.lora
    merged = jax.jit(lambda params: unstack(params | {"transformer": merge_lora(params["transformer"], config)}))(
        params
    )
    jax.tree.map(np.testing.assert_array_equal, pipe.params, merged)


def test_a_checkpoint_loaded_again_draws_the_same(pipe, folder, drawn):
    again = Pipeline.load(str(folder))
    again._generator = pipe._generator  # compiled already
    result = again.generate(CAT, PROMPT, num_images=3, seed=7, **FAST)
    np.testing.assert_array_equal(pixels(result), pixels(drawn))


def test_parameters_that_take_turns_draw_the_same(folder, drawn):
    turns = Pipeline.load(folder, offload=True)
    assert {type(leaf) for leaf in jax.tree.leaves(turns.params)} == {np.ndarray}
    np.testing.assert_array_equal(pixels(turns.generate(CAT, PROMPT, num_images=3, seed=7, **FAST)), pixels(drawn))


@pytest.mark.slow
def test_eight_bits_take_turns_too_and_keep_the_adapters(folder, params, drawn):
    here, turns = (Pipeline.load(folder, frozen_dtype="int8", offload=offload) for offload in (False, True))
    first, again = (pixels(each.generate(CAT, PROMPT, num_images=3, seed=7, **FAST)) for each in (here, turns))
    np.testing.assert_array_equal(again, first)
    assert 0 < np.abs(first - pixels(drawn)).mean() < 4
    block, whole = here.params["transformer"]["double_blocks"]["0"]["attn"]["to_q"], params["transformer"]
    assert block["kernel"].dtype == np.int8
    np.testing.assert_array_equal(block["lora_a"], whole["double_blocks"]["attn"]["to_q"]["lora_a"][0])


def test_adapters_are_not_needed(params, folder, pipe, tmp_path):
    config = checkpoint.read_config(folder)
    scale, config.model.lora = pipe.experiment.model.lora, None
    merged = params | {"transformer": jax.jit(lambda tree: merge_lora(tree, scale))(params["transformer"])}
    checkpoint.save(tmp_path / "merged", config, merged, TINY)
    plain = Pipeline.load(tmp_path / "merged")
    jax.tree.map(np.testing.assert_array_equal, plain.params, pipe.params)
    assert plain.checkpoint != pipe.checkpoint


def test_another_shape_is_an_error(saved):
    config = checkpoint.read_config(saved)
    config.model.lora.rank = 8
    with pytest.raises(UserError, match=r"lora_\w is \(.*16.*\), the config says \(.*8.*\(and \d+ more\)"):
        Pipeline.load(saved, config)


@pytest.mark.parametrize("missing", ["config.json", "params", "tokenizer", "clip_tokenizer", "folder"])
def test_missing_pieces_are_named(saved, missing):
    (saved if missing == "folder" else saved / missing).rename(saved.parent / "elsewhere")
    with pytest.raises(UserError, match="copy.*config.json" if missing == "folder" else f"copy.*{missing}") as error:
        Pipeline.load(saved)
    assert "\n" not in str(error.value)


def test_a_damaged_parameter_file_is_named(saved):
    largest = max((saved / "params").rglob("*"), key=lambda path: path.stat().st_size)
    half = largest.read_bytes()[: largest.stat().st_size // 2]
    largest.unlink()  # a link
    largest.write_bytes(half)
    with pytest.raises(UserError, match=rf"damaged: params/.*{largest.name} has {len(half)} bytes"):
        Pipeline.load(saved)


def test_a_saved_picture_holds_its_metadata(drawn, tmp_path):
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


def test_saving_replaces_only_whole_pictures(tmp_path, monkeypatch):
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
def test_saving_where_nothing_can_be(tmp_path, where):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=rf"cannot write .*{where}") as error:
        small_result().save(tmp_path / where)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
