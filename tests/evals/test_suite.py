import logging
from dataclasses import replace

import jax
import pytest

from mllmsubj.config.train import LossEvalConfig, SamplesEvalConfig
from mllmsubj.errors import UserError
from mllmsubj.evals.held_out import held_out
from mllmsubj.evals.suite import all_evaluators, evaluators
from tests.evals.small_run import mesh_of, with_evals


def names(found):
    return [(evaluator.name, evaluator.every_steps, evaluator.examples) for evaluator in found]


def test_evaluators_cadence(restored):
    """Training runs the evaluators that have a cadence."""
    run, off = restored[0], LossEvalConfig(0, 6)
    with jax.set_mesh(mesh_of(1)):
        assert names(evaluators(run)) == [("loss", 2, 6)]
        assert names(evaluators(with_evals(run, loss=off))) == []
        assert names(evaluators(with_evals(run, loss=off, samples=SamplesEvalConfig(5, 3, 1)))) == [("samples", 5, 3)]


def test_all_evaluators(restored):
    """Outside training, all evaluators run, whatever their cadence."""
    with jax.set_mesh(mesh_of(1)):
        assert names(all_evaluators(restored[0], seed=3)) == [("loss", 2, 6), ("samples", 0, 2)]


def test_evaluators_without_test_split(restored, caplog):
    """Without a test split, training continues without evaluation, and a requested evaluation is an error."""
    run = restored[0]
    experiment = replace(run.experiment, data=replace(run.experiment.data, source="pairs.jsonl"))
    run = replace(run, experiment=experiment)
    with caplog.at_level(logging.WARNING, "mllmsubj"):
        assert evaluators(run) == []
    assert "no evaluation: 'pairs.jsonl' has no test split; name held-out data" in caplog.text
    with pytest.raises(UserError, match=r"'pairs\.jsonl' has no test split; .*--config\.evals\.source="):
        all_evaluators(run, seed=0)


def test_held_out_unaugmented(restored):
    """Held-out data are not augmented, and do not depend on the number of training examples."""
    experiment = restored[0].experiment
    data = replace(experiment.data, swap=0.5, flip=0.5, crop=0.5, remove_background=0.5, min_scores=(("dino", 0.5),))
    augmented = held_out(replace(experiment, data=replace(data, examples=7)))
    assert augmented == held_out(experiment)
    assert (augmented.split, augmented.swap, augmented.flip, augmented.crop) == ("test", 0.0, 0.0, 1.0)
    evals = replace(experiment.evals, source="tfds:other")
    assert held_out(replace(experiment, evals=evals)).source == "tfds:other"
