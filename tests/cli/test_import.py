"""`mllmsubj import`."""

import jax
import numpy as np
import pytest

from mllmsubj import convert
from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.checkpoints.initial import load_params
from mllmsubj.cli import main
from mllmsubj.config.schema import Experiment
from mllmsubj.errors import UserError
from mllmsubj.inference.pipeline import Pipeline
from mllmsubj.models.layers import Compute
from mllmsubj.models.subject import SubjectModel
from mllmsubj.parallel.sharding import make_mesh, sharded_shapes
from mllmsubj.tree import flatten
from tests.environment import ROOT

CONFIG = f"--config={ROOT / 'configs' / 'tiny.py'}"


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_import_checkpoint(flux, tmp_path, dtype, capsys):
    """The checkpoint has the weights and sizes of the sources; it can be trained, but not used to generate."""
    workdir = tmp_path / "workdir"
    sources = (f"--mllm={flux / 'mllm'}", f"--transformer={flux}", f"--vae={flux / 'vae'}")
    main.run(["mllmsubj", "import", *sources, CONFIG, f"--workdir={workdir}", f"--dtype={dtype}"])
    assert f"--config.train.weights={workdir}" in capsys.readouterr().out

    load = dict(mllm=convert.load_mllm, transformer=convert.load_transformer, vae=convert.load_vae)
    loaded = {name: function(flux / name) for name, function in load.items()}
    loaded["clip"] = convert.load_clip_text(flux / "text_encoder")
    want = {name: jax.tree.map(lambda leaf: leaf.astype(dtype), params) for name, (_, params) in loaded.items()}
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), want)
    found = checkpoint.restore(workdir, sharded_shapes(shapes, make_mesh()))
    jax.tree.map(np.testing.assert_array_equal, found, want)

    model = Experiment.from_config(checkpoint.read_config(workdir)).model
    assert {name: getattr(model, name) for name in loaded} == {name: config for name, (config, _) in loaded.items()}
    subject = SubjectModel(model, Compute())
    params = load_params(workdir, subject, subject.abstract_params(make_mesh(devices=jax.devices()[:1])), 0)
    assert flatten(params).keys() == flatten(subject.abstract_params()).keys()

    with pytest.raises(
        UserError, match=rf"checkpoint {workdir} is not trained yet: .* --config.train.weights="
    ) as error:
        Pipeline.load(workdir)
    assert "\n" not in str(error.value)


FOLDERS = dict(mllm="m", transformer="t", vae="v", clip="c", workdir="new")
BAD = {
    "no mllm": (dict(mllm=None), ["no mllm", "--mllm=DIR"]),
    "no workdir": (dict(workdir=None), ["no workdir", "--workdir=DIR"]),
    "no clip": (dict(clip=None), ["no clip", "text_encoder", "--clip=DIR"]),
    "not there": ({}, ["m is not there"]),
    "exists": (dict(workdir="there"), ["there exists already"]),
    "dtype": (dict(dtype="float8"), ["dtype", "float8", "bfloat16"]),
    "config": (dict(config="none.py"), ["none.py", "not there"]),
}


@pytest.mark.parametrize(("changes", "says"), BAD.values(), ids=list(BAD))
def test_import_invalid_arguments(tmp_path, monkeypatch, capsys, changes, says):
    """The error is one line, and no file is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    words = [f"--{name}={value}" for name, value in (FOLDERS | changes).items() if value is not None]
    with pytest.raises(SystemExit) as stop:
        main.main(["mllmsubj", "import", *words])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("mllmsubj: error: ")
    assert all(word in err for word in says), err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
