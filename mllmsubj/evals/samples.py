"""Sample images of the first held-out examples, always from the same noise, for visual inspection."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from mllmsubj.config.data import DataConfig
from mllmsubj.config.sampling import SamplingConfig
from mllmsubj.config.train import SamplesEvalConfig
from mllmsubj.evals.held_out import HeldOut
from mllmsubj.evals.image_sampler import ImageSampler, all_gather
from mllmsubj.train.evaluator import Value
from mllmsubj.train.setup import Setup
from mllmsubj.typing import Params

MEANINGS: Mapping[str, str] = {
    "samples": "Reference, what the model draws from it and the prompt, and the data's own target."
}


class Samples:
    """Evaluator of "samples": one row per example with its reference, generated image and target side by side.

    The caption of a row is its prompt. Image i is the one that inference generates from the noise of (seed, i).
    """

    name = "samples"

    def __init__(self, setup: Setup, data: DataConfig, config: SamplesEvalConfig, seed: int = 0) -> None:
        """`seed`: seed of the noise. Raises UserError if `data` cannot be opened."""
        sampling = setup.experiment.sampling
        self.every_steps, self.meanings = config.every_steps, MEANINGS
        self.settings = replace(sampling, steps=config.steps or sampling.steps)
        # One size, so that all images are generated in one batch.
        data = replace(data, sizes=((sampling.height, sampling.width),), max_references=1)
        self._held_out = HeldOut.open(setup, data, config.count, "evals.samples.count")
        self.examples = self._held_out.count
        self._sample = ImageSampler(setup, self.settings, seed)

    def run(self, params: Params) -> Iterator[tuple[str, Value]]:
        """Yields the images and their captions; see `Evaluator.run`."""
        size = self._held_out.batch_size(self.examples)
        with closing(self._held_out.loader(size)) as loader:
            batch = self._held_out.make_global_batch(next(loader), loader, size)
        generated = self._sample(params, batch)
        shown = [_resize(all_gather(batch.references[:, 0]), self.settings), generated, all_gather(batch.target)]
        yield "samples", np.concatenate(shown, axis=2)[: self.examples]
        yield "samples", self._held_out.prompts(all_gather(batch.example)[: self.examples])


def _resize(references: UInt8[np.ndarray, "b side side 3"], settings: SamplingConfig) -> np.ndarray:
    """Resizes square references to the height of the images, by repeating or dropping pixels."""
    rows = np.arange(settings.height) * references.shape[1] // settings.height
    return references[:, rows][:, :, rows]
