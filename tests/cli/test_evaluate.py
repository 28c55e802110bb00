"""`mllmsubj evaluate` on a small workdir: trained parameters on top of a base checkpoint."""

import json
import types
from dataclasses import asdict

import jax
import numpy as np
import pytest
from PIL import Image

from mllmsubj.checkpoints import components, initial
from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.cli import main
from mllmsubj.config.schema import Experiment
from mllmsubj.data.plan import BatchPlan
from mllmsubj.data.sources import open_source
from mllmsubj.evals import suite
from mllmsubj.evals.held_out import SEED, held_out
from mllmsubj.models.layers import abstract_params
from mllmsubj.parallel import sharding
from mllmsubj.toyworld import Split, example
from mllmsubj.toyworld.benchmark.scores import MEANINGS
from mllmsubj.toyworld.probe.network import GlimpseConfig, ProbeConfig
from mllmsubj.toyworld.probe.reader import make_network
from mllmsubj.train import setup as train_setup
from mllmsubj.tree import flatten, split, unflatten
from tests.evals.small_run import config, params, save
from tests.small import random_like

SAME = ("--seed=3", "--limit=6")
"""Flags that need the same compiled programs as tests/evals/test_loss.py."""


class Nothing:
    """An evaluator whose only metric is NaN."""

    every_steps, examples, meanings = 0, 1, types.MappingProxyType({})

    def __init__(self, name):
        self.name = name

    def run(self, params):
        yield self.name, float("nan")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a finished workdir, `run`, a probe, and files that are not checkpoints."""
    folder = tmp_path_factory.mktemp("evaluate")
    base = save(folder / "base")
    trained = split(params(), {path for path in flatten(params()) if "lora" in path or "dla/" in path})[0]
    checkpoint.save(folder / "run" / "model", config(), trained, base, base=base)
    look = GlimpseConfig(stem=4, widths=(8, 8), blocks=(1, 1))
    network = ProbeConfig(whole=look, close=look, cut=16, span=1.5, norm_num_groups=4, maps=1)
    probe = random_like(abstract_params(make_network(network, 16)))  # images are 32 pixels wide
    (folder / "probe").mkdir()
    components.write(folder / "probe", "probe", {"probe": probe}, {"pretrain": {"network": asdict(network)}})
    (folder / "file").touch()
    (folder / "other").mkdir()
    (folder / "other" / "notes.txt").touch()
    return folder


@pytest.fixture(autouse=True)
def one_device(folder, monkeypatch):
    """Uses one device, as most users do; programs compile faster for one."""
    make = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda **sizes: make(**sizes, devices=jax.devices()[:1]))
    monkeypatch.setattr(main, "_set_up", lambda: None)
    monkeypatch.chdir(folder)


def evaluate(*more, **changes):
    """Runs the command with valid flags, changed by `changes`; None omits a flag."""
    flags = dict(checkpoint="run", benchmark="heldout", output="out") | changes
    main.main(["mllmsubj", "evaluate", *(f"--{n}={v}" for n, v in flags.items() if v is not None), *more])


def test_evaluate_heldout(folder, capsys):
    evaluate(*SAME)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [f"loss/{n}" for n in ("all", "both", "mllm", "vae", "none")]
    assert lines[-1] == "out/report.html"
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    about = dict(benchmark="heldout", checkpoint=checkpoint.fingerprint(folder / "run" / "model"), seed=3, examples=6)
    assert metrics.items() >= about.items()
    assert lines[0].split()[1] == f"{metrics['loss/all']:.4g}"
    with Image.open(folder / "out" / "samples.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (2 * 32, 3 * 32, 3)
    page = (folder / "out" / "report.html").read_text()
    for said in (about["checkpoint"], "<code>run</code>", "&quot;examples&quot;: 6", "toyworld, held-out"):
        assert said in page
    assert 'class="note"' not in page
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["metrics.json", "report.html", "samples.png"]


def test_evaluate_toyworld(folder, capsys):
    evaluate("--limit=3", "--probe=probe", "--config.sampling.batch_size=2", benchmark="toyworld", output="world")
    printed = capsys.readouterr().out.splitlines()
    metrics = json.loads((folder / "world" / "metrics.json").read_text())
    assert metrics.items() >= dict(benchmark="toyworld", seed=0, examples=3).items()
    assert set(MEANINGS) <= set(metrics)
    for name in ("identity_accuracy", "prompt_accuracy", "pose_copy_rate", "copy_psnr"):
        assert metrics[f"{name}/low"] <= metrics[name] <= metrics[f"{name}/high"]
        assert f"{metrics[name]:.4g}" in next(line for line in printed if line.startswith(f"{name} "))
    assert not any("/low" in line for line in printed)
    page = (folder / "world" / "report.html").read_text()
    assert page.count("<img ") == 3
    for said in ("95 %", "real pictures", "3, 32 × 32, 2 steps", "toyworld, held-out", " — wrong: "):
        assert said in page
    with Image.open(folder / "world" / "samples.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (3 * 32, 3 * 32, 3)
    targets = [example(Split.TEST, n).target.render(32) for n in shown_first(folder, 3)]
    np.testing.assert_array_equal(pixels[:, 64:], np.concatenate(targets))


def shown_first(folder, count):
    """Indices of the first held-out examples, which the benchmark shows."""
    data = held_out(Experiment.from_config(config()))
    return BatchPlan(open_source(data, SEED).index(), data, count, SEED).batch(0).examples.tolist()


def test_evaluate_probe_size_mismatch(folder, capsys):
    other = folder / "other_probe"
    about = components.provenance(folder / "probe", "probe")
    about["pretrain"]["network"]["close"]["widths"] = (8, 16)
    leaves = unflatten(components.read(folder / "probe", ("probe",)))
    other.mkdir()
    components.write(other, "probe", leaves, about)
    with pytest.raises(SystemExit):
        evaluate("--probe=other_probe", benchmark="toyworld")
    assert "the probe in other_probe is not one of this version's" in capsys.readouterr().err


def test_evaluate_untrained_components(folder, monkeypatch):
    """Untrained components give a warning and a note in the report; a small model stands in for "tiny"."""
    monkeypatch.setattr(checkpoint, "read_config", lambda folder: config())
    monkeypatch.setattr(initial, "untrained_components", lambda folder: ("vae", "dla"))
    monkeypatch.setattr(initial, "tiny_params", lambda *_: params())
    monkeypatch.setattr(suite, "all_evaluators", lambda run, seed: [Nothing("loss"), Nothing("samples")])
    with pytest.warns(UserWarning, match="'tiny' has no trained weights yet"):
        evaluate(checkpoint="tiny", output="random")
    assert "Not trained yet: vae, dla." in (folder / "random" / "report.html").read_text()
    assert json.loads((folder / "random" / "metrics.json").read_text())["loss"] is None


@pytest.mark.parametrize(
    ("more", "changes", "says"),
    [
        ([], dict(benchmark=None), ["no benchmark", "heldout"]),
        ([], dict(benchmark="heldouts"), ["unknown benchmark 'heldouts' (did you mean 'heldout'?)", "--benchmark="]),
        (
            [],
            dict(benchmark="toyword"),
            ["'toyword' (did you mean 'toyworld'?)", "there are heldout"],
        ),
        (
            ["--probe=other"],
            dict(benchmark="toyworld"),
            ["the probe is not there yet (other/", "--component=probe"],
        ),
        (["--config.sampling.width=48"], dict(benchmark="toyworld"), ["sampling.width are 32 and 48", "squares"]),
        ([], dict(output=None), ["no output", "--output=DIR"]),
        ([], dict(output="file"), ["'file' is a file; name a folder"]),
        ([], dict(output="file/out"), ["file is not a folder that can be written to"]),
        ([], dict(output="other"), ["'other' holds other files", "'notes.txt'"]),
        (["--limit=0"], {}, ["--limit=0", "positive"]),
        (["--seed=-1"], {}, ["--seed=-1"]),
        (["--limits=3"], {}, ["--limits", "'limit'"]),
        ([], dict(checkpoint="nowhere"), ["'nowhere' is no checkpoint"]),
        (["--config.evals.los.examples=3"], {}, ["unknown config key evals.los.examples", "'loss'"]),
        (["--config.evals.source=nowhere.jsonl"], {}, ["'nowhere.jsonl' is not there"]),
        (["--config.data.source=pairs.jsonl"], {}, ["'pairs.jsonl' has no test split", "--config.evals.source="]),
    ],
)
def test_evaluate_invalid_arguments(folder, monkeypatch, capsys, more, changes, says):
    """The error comes before weights are read, and no file is written."""
    monkeypatch.setattr(train_setup, "restored", lambda *_: pytest.fail("weights were read"))
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        evaluate(*more, **changes)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mllmsubj: error: ")
    assert err.count("\n") == 1
    for text in says:
        assert text in err
    assert sorted(folder.rglob("*")) == before


def test_evaluate_sample_count_zero(capsys):
    with pytest.raises(SystemExit):
        evaluate("--config.evals.samples.count=0")
    assert "config key evals.samples.count is 0; it must be at least 1" in capsys.readouterr().err
