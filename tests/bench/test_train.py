"""The benchmark of a training step against PyTorch, at the smallest sizes."""

from dataclasses import replace

import pytest

from mllmsubj.config.schema import Experiment
from tests.small import small_config


@pytest.mark.parity
# Warnings of PyTorch's C++ code about Python, and of peft about its own methods.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compare_parity():
    """Loss, gradients and updated parameters agree with PyTorch's."""
    from mllmsubj.bench.train import compare
    from mllmsubj.bench.train_inputs import BenchSize

    experiment = Experiment.from_config(small_config())
    model = experiment.model
    model = replace(
        model,
        dla=replace(model.dla, num_blocks=1),
        transformer=replace(model.transformer, num_layers=1, num_single_layers=1),
    )
    result = compare(experiment, BenchSize(model, rows=4, grid=(2, 3), text=5, image=4), repeats=1)
    assert result["loss_relative_difference"] < 1e-5
    assert result["gradient_relative_difference"] < 1e-4
    # Adam's first update is the sign of the gradient, which is noise where the gradient is nearly zero.
    assert result["parameter_relative_difference"] < 1e-3
    assert result["step"]["rounds"] == 1
