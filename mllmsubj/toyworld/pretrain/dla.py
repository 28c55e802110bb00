"""Pretraining of the DLA before the method's two stages: its output replaces the captions' embedding table.

The table takes the place of T5. The DLA reads the frozen MLLM's hidden states of a prompt and a reference, and is
trained until the transformer's velocity equals that of a caption of what is asked for (paper.md, "Where we can be
better than the paper", 2, extended to references). This target contains no noise, so that far fewer pictures suffice
than for flow matching. Some rows are captions in other words, without a reference.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mllmsubj.config.data import DataConfig, ReferenceConfig
from mllmsubj.data.images import normalize_tiles
from mllmsubj.data.plan import Bucket
from mllmsubj.diffusion.loss import squared_error
from mllmsubj.models.layers import init_params
from mllmsubj.models.subject import Condition
from mllmsubj.toyworld import Example, Split, ToyworldSource
from mllmsubj.toyworld.benchmark.tallies import accuracy, identity, prompt, truth
from mllmsubj.toyworld.dataset.images import PictureSource
from mllmsubj.toyworld.dataset.latents import EncodedExamples, Targets
from mllmsubj.toyworld.pretrain.captions import OMITTED, CaptionBatch
from mllmsubj.toyworld.pretrain.distillation import DistillationBatch, DistillationReader, split_rows
from mllmsubj.toyworld.pretrain.dit import SHOWN, DiTComponent
from mllmsubj.toyworld.pretrain.settings import DLAPretrainConfig
from mllmsubj.toyworld.probe.reader import ProbeReader
from mllmsubj.toyworld.prompts.prompt import random_caption
from mllmsubj.toyworld.world.attributes import ATTRIBUTES
from mllmsubj.train.evaluator import Value
from mllmsubj.train.metrics import BinnedMetrics
from mllmsubj.typing import ActiveTokens, Array, Float, Int, Params

ACTIVE_TOKENS = (ActiveTokens(text=True), ActiveTokens(text=True, image=True))
"""Active condition tokens by the number of references."""


@dataclass(frozen=True)
class DLAComponent:
    """The DLA; see `pretrain.component.Component`."""

    config: DLAPretrainConfig
    dit: DiTComponent
    """The frozen transformer, whose condition the DLA computes."""
    data: DataConfig
    reference: ReferenceConfig

    name = "dla"
    bins: ClassVar[Mapping[str, BinnedMetrics]] = {"by_kind": BinnedMetrics("loss_kind", ("text", "prompt"))}
    meanings: ClassVar[Mapping[str, str]] = {
        "dla/loss": "Squared difference of the velocity of a text from that of its caption",
        "dla/silence": "The same of saying nothing: what there is to learn",
        "dla/accuracy": "Share of what texts say that the probe reads in pictures drawn after them",
        "dla/loss_seen": "As the loss, of prompts about references",
        "dla/silence_seen": "The same of saying nothing",
        "dla/identity": "Share of a reference's attributes that the probe reads in drawings of prompts about it",
        "dla/prompts": "Share of what these prompts ask",
        "dla/identity_told": "As identity, in drawings of the captions that stand beside the prompts: its most",
        "dla/prompts_told": "The same of what these prompts ask",
    }

    @property
    def size(self) -> int:
        """Side of its pictures in pixels."""
        return self.dit.size

    def init(self, key: jax.Array) -> Params:
        """Returns random parameters."""
        return {"dla": init_params(self.dit.model.stacked.dla, key)}

    def frozen(self) -> Params:
        """Returns the parameters of the MLLM, the transformer, CLIP, the captions' table and the VAE.

        Raises UserError if some are missing.
        """
        return self.dit.load_components(self.name, "mllm", "dit", "vae")

    def source(self, pictures: PictureSource, threads: int) -> EncodedExamples:
        """Returns examples with the latents of their targets."""
        examples = ToyworldSource(pictures.split, self.config.examples, pictures.size, pictures.seed)
        return EncodedExamples(examples, *self.dit.cached_latents(Targets(examples), threads), self.config.relations)

    def reader(self, data: DataConfig) -> DistillationReader:
        """Returns a reader of distillation data."""
        return DistillationReader(
            self.dit.reader(data), self.config.tokens, self.dit.model.config.mllm.vision.image_size
        )

    def losses(
        self, params: Params, frozen: Params, batch: DistillationBatch, key: Array
    ) -> tuple[Float[Array, " b"], dict[str, Float[Array, "two n"]]]:
        """Returns the squared difference between the velocities of text and caption, at noisy latents."""
        drawn, losses = self.dit.noisy(batch, key), jnp.zeros(len(batch.example))
        every = split_rows(len(batch.example))
        for references, rows in enumerate(every):
            some, noisy = jax.tree.map(lambda x, rows=rows: x[rows], (batch, drawn))
            losses = losses.at[rows].set(self._losses(params, frozen, some, noisy, references))
        sums = jnp.stack([losses[rows].sum() for rows in every])
        return losses, {"by_kind": jnp.stack([sums, jnp.asarray([float(len(rows)) for rows in every])])}

    def _losses(
        self,
        params: Params,
        frozen: Params,
        batch: DistillationBatch,
        drawn: tuple[Array, Array, Array],
        references: int,
    ) -> Float[Array, " b"]:
        """Returns the losses of rows of one kind."""
        latents, t, _ = drawn
        target = self.dit.velocity(frozen, latents, t, self.dit.condition(frozen, batch), ACTIVE_TOKENS[0])
        condition = self.condition(params, frozen, batch, references)
        return squared_error(
            self.dit.velocity(frozen, latents, t, condition, ACTIVE_TOKENS[references]), target, batch.weights
        )

    def condition(self, params: Params, frozen: Params, batch: DistillationBatch, references: int) -> Condition:
        """Returns the transformer's condition that the DLA computes for rows of one kind."""
        model, ((start, stop), images) = self.dit.model, self.reader(self.data).layout(references)
        tiles = normalize_tiles(batch.tiles, self.reference) if references else None
        ids, mask = batch.input_ids[:, :stop], batch.attention_mask[:, :stop]
        states: Any = model.mllm.apply({"params": frozen["mllm"]}, ids, mask, tiles)
        image = jnp.concatenate([states[:, :, :0], *(states[:, :, slice(*span)] for span in images)], axis=2)
        pooled: Any = model.dla.apply({"params": params["dla"]}, states[:, :, start:stop], image, mask[:, start:stop])
        known = self.dit.condition(frozen, replace(batch, clip_ids=batch.text_clip_ids))
        return replace(known, text=pooled[0], image=pooled[1], text_mask=mask[:, start:stop])

    def evaluate(self, params: Params, frozen: Params) -> Iterator[tuple[str, Value]]:
        """Evaluates held-out examples: full captions, and prompts about references, in held-out sentence patterns."""
        source = ToyworldSource(Split.TEST, self.config.num_eval_examples, self.size)
        examples = [source.example(i) for i in range(len(source))]
        generate, loss = (jax.jit(each, static_argnames="references") for each in (self._generate, self._loss))
        empty_caption_loss, from_captions, folder = (
            jax.jit(self._empty_caption_loss),
            jax.jit(self._generate_from_captions),
            self.dit.find_folder("probe"),
        )
        probe = None if folder is None else ProbeReader.load(folder)
        for references, name in enumerate(("", "_seen")):
            held = list(self._held_out(frozen, examples, references))
            losses = [loss(params, frozen, *each, references=references) for each in held]
            yield f"dla/loss{name}", float(np.concatenate(losses).mean())
            yield (
                f"dla/silence{name}",
                float(np.concatenate([empty_caption_loss(frozen, *each) for each in held]).mean()),
            )
            drawn = np.concatenate([generate(params, frozen, *each, references=references) for each in held])
            if probe is not None:
                yield from self._read(examples, probe(drawn), references)
            if probe is not None and references:
                drawn_from_captions = np.concatenate([from_captions(frozen, *each) for each in held])
                yield from (
                    (f"{key}_told", share)
                    for key, share in self._read(examples, probe(drawn_from_captions), references)
                )
            shown = [np.stack([example.target.render(self.size) for example in examples[:SHOWN]]), drawn[:SHOWN]]
            if references:
                shown.insert(0, np.stack([example.reference.render(self.size) for example in examples[:SHOWN]]))
            yield f"dla/drawings{name}", np.concatenate(shown, axis=2)
            yield f"dla/drawings{name}", tuple(example.prompt.text for example in examples[:SHOWN])

    def _read(
        self, examples: list[Example], readings: Int[np.ndarray, "n attributes"], references: int
    ) -> Iterator[tuple[str, float]]:
        """Yields the accuracies of readings, as the benchmark defines them."""
        tallies = {"identity": identity, "prompts": prompt} if references else {"accuracy": truth}
        for name, tally in tallies.items():
            yield f"dla/{name}", float(accuracy(tally(examples, readings), np.ones((1, len(examples))))[0])

    def _held_out(
        self, frozen: Params, examples: list[Example], references: int
    ) -> Iterator[tuple[DistillationBatch, Array]]:
        """Yields batches of rows of one kind, each with its random key."""
        reader, rng = self.reader(self.data), np.random.default_rng(0)
        size, encode = self.config.batch_size, jax.jit(self.dit.latent_stats)
        for first in range(0, len(examples), size):
            some = examples[first : first + size]
            latent_stats = np.asarray(encode(frozen, np.stack([example.target.render(self.size) for example in some])))
            batch = reader.empty(Bucket(self.size, self.size, 1), len(some))
            for row, (example, each) in enumerate(zip(some, latent_stats, strict=True)):
                if references:
                    reader.write_prompt_row(example, each, batch, row)
                else:
                    who, where = example.target.identity, example.target.scene
                    text = random_caption(rng, who, where, set(ATTRIBUTES), held_out=True)
                    reader.write_text_row(example.target, set(ATTRIBUTES), text, each, batch, row)
            yield batch, jax.random.fold_in(jax.random.key(0), first)

    def _loss(
        self, params: Params, frozen: Params, batch: DistillationBatch, key: Array, references: int
    ) -> Float[Array, " b"]:
        return self._losses(params, frozen, batch, self.dit.noisy(batch, key), references)

    def _generate(self, params: Params, frozen: Params, batch: DistillationBatch, key: Array, references: int) -> Array:
        condition = self.condition(params, frozen, batch, references)
        return self.dit.generate(frozen, frozen, condition, key, ACTIVE_TOKENS[references])

    def _generate_from_captions(self, frozen: Params, batch: CaptionBatch, key: Array) -> Array:
        """Generates pictures of the captions themselves, from the embedding table."""
        return self.dit.generate(frozen, frozen, self.dit.condition(frozen, batch), key, ACTIVE_TOKENS[0])

    def _empty_caption_loss(self, frozen: Params, batch: CaptionBatch, key: Array) -> Float[Array, " b"]:
        latents, t, _ = self.dit.noisy(batch, key)
        known = self.dit.condition(frozen, batch)
        nothing = self.dit.condition(frozen, replace(batch, captions=jnp.full_like(batch.captions, OMITTED)))
        target, velocity = (self.dit.velocity(frozen, latents, t, each, ACTIVE_TOKENS[0]) for each in (known, nothing))
        return squared_error(velocity, target)
