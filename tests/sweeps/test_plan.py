"""Runs of a sweep and their trainings, and every shipped sweep file with both configs."""

from pathlib import Path

import pytest

from mllmsubj.config.load import flat, load_config
from mllmsubj.errors import UserError
from mllmsubj.sweeps.execute import check_runs
from mllmsubj.sweeps.plan import Record, check_record, load_sweep, plan, read_record, write_record

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(CONFIGS.glob("sweeps/*.py"))
RUNS = {"layers": 5, "lap": 2, "refiner": 2, "width": 3, "tau": 4, "guidance": 3, "modes": 4, "last_stage": 2}
EVALUATION_ONLY = ("tau", "guidance", "last_stage")


@pytest.fixture(scope="module", params=["tiny", "paper"])
def config(request):
    return load_config(str(CONFIGS / f"{request.param}.py"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_checked_runs_shipped(config, path):
    """Every shipped sweep has valid runs with the expected trainings."""
    runs = check_runs(config, load_sweep(str(path), config), [], None)
    assert len(runs) == RUNS[path.stem]
    trainings = {run.training for run in runs}
    assert trainings == ({"base"} if path.stem in EVALUATION_ONLY else {run.name for run in runs})
    if path.stem in EVALUATION_ONLY:
        assert check_runs(config, load_sweep(str(path), config), [], "tiny") == runs


def test_shipped_sweeps_listed():
    """Every shipped sweep is tested."""
    assert {path.stem for path in SHIPPED} == RUNS.keys()


@pytest.mark.parametrize(
    ("name", "ranges"),
    [
        ("tiny", [(0, 7), (6, 7), (0, 3), (3, 5), (5, 7)]),
        ("paper", [(0, 29), (28, 29), (0, 10), (10, 20), (20, 29)]),
    ],
)
def test_layers_sweep_ranges(name, ranges):
    """The ranges of layers are the paper's."""
    runs = load_sweep(str(CONFIGS / "sweeps" / "layers.py"), load_config(str(CONFIGS / f"{name}.py")))
    assert [run["model.dla.states"] for run in runs] == ranges


def test_plan_shared_training():
    """Runs that differ in sampling or evaluation alone share a training."""
    overrides = [{"a.x": 1}, {"a.x": 1, "sampling.tau1": 0.5}, {"sampling.tau1": 0.5}, {"evals.source": "y"}, {}]
    runs = plan(overrides, ["a.x", "sampling.tau1", "evals.source"])
    assert [run.training for run in runs] == ["x=1", "x=1", "base", "base", "base"]
    assert [run.evaluation_overrides for run in runs] == [
        {},
        {"sampling.tau1": 0.5},
        {"sampling.tau1": 0.5},
        {"evals.source": "y"},
        {},
    ]
    with pytest.raises(UserError, match="the sweep has run x=1 twice"):
        plan([{"a.x": 1}, {"a.x": 1}], ["a.x"])


def test_check_record(tmp_path, config):
    """A workdir accepts only the sweep and the config that it was started with."""
    keys = flat(config)
    runs = plan([{"model.dla.states": (0, 3)}, {"train.stage1.learning_rates": (("dla/.*", None),)}], keys)
    record = Record("layers", None, config, runs)
    check_record(tmp_path, record)
    write_record(tmp_path, record)
    assert read_record(tmp_path).runs == runs
    check_record(tmp_path, record)

    other = config.copy_and_resolve_references()
    other.train.clip_norm, other.evals.loss.examples = 2.0, 7
    with pytest.raises(
        UserError, match=r"another config: train\.clip_norm: 1\.0 there, 2\.0 here; give another workdir"
    ):
        check_record(tmp_path, Record("layers", None, other, runs))
    with pytest.raises(
        UserError, match="holds the sweep layers of its own trainings, this is lap of its own trainings"
    ):
        check_record(tmp_path, Record("lap", None, config, runs))
    with pytest.raises(UserError, match="this is layers of tiny"):
        check_record(tmp_path, Record("layers", "tiny", config, runs))


@pytest.mark.parametrize("text", ["{", "[]", '{"sweep": "x"}'])
def test_read_record_damaged(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json is not a sweep's"):
        read_record(tmp_path)
