"""Evaluator that generates toyworld's held-out examples with a checkpoint and evaluates the images."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace

import numpy as np

from mllmsubj.config.data import DataConfig
from mllmsubj.config.schema import Experiment
from mllmsubj.data.plan import BatchPlan
from mllmsubj.data.sources import open_source
from mllmsubj.errors import UserError
from mllmsubj.evals.held_out import SEED, HeldOut, held_out
from mllmsubj.evals.image_sampler import ImageSampler, all_gather
from mllmsubj.toyworld import Example, ToyworldSource
from mllmsubj.toyworld.benchmark.scores import MEANINGS, copy_scores, probe_scores, scores
from mllmsubj.toyworld.probe.reader import ProbeReader
from mllmsubj.toyworld.world.attributes import ATTRIBUTES, number
from mllmsubj.train.evaluator import Value
from mllmsubj.train.setup import Setup
from mllmsubj.typing import Params

EXAMPLES = 500
"""Default number of examples, for rates within 4 percentage points."""
SHOWN = 16
"""Number of images in the report."""

log = logging.getLogger("mllmsubj")


def check_size(experiment: Experiment) -> None:
    """Raises UserError unless the sampler's images are squares, as toyworld's pictures are."""
    sampling = experiment.sampling
    if sampling.height != sampling.width:
        raise UserError(
            f"config keys sampling.height and sampling.width are {sampling.height} and {sampling.width}; "
            f"toyworld's pictures are squares"
        )


def benchmark_data(experiment: Experiment) -> DataConfig:
    """Returns the data settings of the benchmark, whatever the experiment trains on."""
    plain = replace(experiment.data, source="toyworld")
    ours = replace(experiment, data=plain, evals=replace(experiment.evals, source=""))
    size = (experiment.sampling.height, experiment.sampling.width)
    return replace(held_out(ours), sizes=(size,), max_references=1)


def first_prompts(experiment: Experiment, count: int) -> list[str]:
    """Returns the prompts of the benchmark's first `count` examples."""
    data = benchmark_data(experiment)
    source = open_source(data, SEED)
    numbers = BatchPlan(source.index(), data, count, SEED).batch(0).examples
    return [source[int(number)].prompt for number in numbers]


class Toyworld:
    """Evaluator of the metrics in `scores`, and of "samples": rows of reference, generated image and target.

    The text of each row contains its prompt, and what is wrong in the image according to the probe. Image i is the one
    that inference generates from the noise of (seed, i).
    """

    name = "toyworld"
    every_steps = 0
    meanings: Mapping[str, str] = {
        **MEANINGS,
        "samples": "Reference, what the model draws from it and the prompt, and one right picture of many.",
    }

    def __init__(self, setup: Setup, probe: ProbeReader, seed: int, examples: int = EXAMPLES) -> None:
        """Opens the examples, which are always the same; `seed`: seed of the noise."""
        sampling = setup.experiment.sampling
        self._held_out = HeldOut.open(setup, benchmark_data(setup.experiment), examples, "limit")
        self.examples = self._held_out.count
        self._probe, self._draw = probe, ImageSampler(setup, sampling, seed)
        self._batch_size = self._held_out.batch_size(sampling.batch_size)

    def run(self, params: Params) -> Iterator[tuple[str, Value]]:
        """Yields the metrics and the samples; see `Evaluator.run`."""
        drawn, examples = self._drawn(params)
        side = drawn.shape[1]
        references = np.stack([example.reference.render(side) for example in examples])
        targets = np.stack([example.target.render(side) for example in examples])
        read, real = self._probe(drawn), self._probe(targets)
        yield from scores(examples, read, real)
        yield from copy_scores(drawn, references, targets)
        yield from probe_scores(examples, real)
        yield "samples", np.concatenate([references, drawn, targets], axis=2)[:SHOWN]
        yield "samples", tuple(_said(*each) for each in zip(examples[:SHOWN], read[:SHOWN], strict=True))

    def _drawn(self, params: Params) -> tuple[np.ndarray, list[Example]]:
        """Returns all generated images, uint8, and their examples."""
        source, size, images, numbers = self._held_out.source, self._batch_size, [], []
        assert isinstance(source, ToyworldSource)
        with closing(self._held_out.loader(size)) as loader:
            for first in range(0, self.examples, size):
                batch = self._held_out.make_global_batch(next(loader), loader, size)
                images.append(self._draw(params, batch, first))
                numbers.append(all_gather(batch.example))
                done = min(first + size, self.examples)
                if done * 10 // self.examples > first * 10 // self.examples:
                    log.info("%d of %d pictures", done, self.examples)
        kept = slice(self.examples)
        return np.concatenate(images)[kept], [source.example(int(n)) for n in np.concatenate(numbers)[kept]]


def _said(example: Example, reading: np.ndarray) -> str:
    """Returns the prompt and what is wrong in the image, according to the probe."""
    wanted = vars(example.prompt.identity(example.reference.identity)) | dict(example.prompt.asks)
    read = dict(zip(ATTRIBUTES, map(int, reading), strict=True))
    wrong = [
        f"{name} {ATTRIBUTES[name][read[name]]} (not {value or 'none'})"
        for name, value in wanted.items()
        if read[name] != number(name, value)
    ]
    return f"{example.prompt.text} — {'wrong: ' + ', '.join(wrong) if wrong else 'all right'}"
