"""Examples that training does not see."""

import logging
from dataclasses import replace

from mllmsubj.data.settings import DataConfig
from mllmsubj.experiment import Experiment

log = logging.getLogger("mllmsubj")


def held_out(experiment: Experiment, examples: int) -> DataConfig | None:
    """The data to judge on, nothing about it random; None, and a line, where nobody said which."""
    data, source = experiment.data, experiment.evals.source
    if not source and not (data.source == "toyworld" or data.source.startswith("tfds:")):
        log.warning("no evaluation: %r has no test split; name other data with --config.evals.source=…", data.source)
        return None
    return replace(
        data,
        source=source or data.source,
        split="test",
        examples=examples,
        swap=0.0,
        flip=0.0,
        crop=1.0,
        remove_background=0.0,
        min_scores=(),
    )
