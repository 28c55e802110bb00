"""Pretraining of the tiny MLLM: it describes pictures and what prompts ask for, and answers questions (VQA).

The next-token loss covers the answers only, in the chat template of the subject model, so that the hidden states that
the model reads represent what a picture shows and what a prompt makes of it. An auxiliary head also trains the vision
tower to represent all attributes at once: InternViT was pretrained before it was joined to its decoder, and answers
about one attribute at a time train a vision tower from scratch too slowly.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import UInt8

from mllmsubj.config.data import DataConfig, ReferenceConfig
from mllmsubj.data.batch import Rows
from mllmsubj.data.images import normalize_tiles
from mllmsubj.data.plan import Bucket
from mllmsubj.data.tokenization import PromptEncoder
from mllmsubj.models.layers import init_params
from mllmsubj.models.subject import SubjectModel
from mllmsubj.toyworld import Picture, Split, caption
from mllmsubj.toyworld.dataset.examples import HeldOut, held_out
from mllmsubj.toyworld.dataset.images import PictureSource
from mllmsubj.toyworld.pretrain.settings import MLLMPretrainConfig
from mllmsubj.toyworld.probe.network import attention_pool_logits
from mllmsubj.toyworld.prompts.prompt import fits, random_kind, write
from mllmsubj.toyworld.prompts.questions import DESCRIBE, QUESTIONS, answer
from mllmsubj.toyworld.world.attributes import ATTRIBUTES, numbers
from mllmsubj.train.evaluator import Value
from mllmsubj.train.metrics import BinnedMetrics
from mllmsubj.typing import Array, Bool, Float, Leaf, Params

TASKS = ("describe", "imagine", "answer")

Conversation = list[tuple[str, str]]
"""Questions and their answers, in order."""


@flax.struct.dataclass
class VQABatch(Rows):
    """VQA batch: a picture and a conversation about it per row."""

    pixels: Leaf
    """[b, tile, tile, 3] uint8."""
    input_ids: Leaf
    """[b, s] int32."""
    answers: Leaf
    """[b, s] bool: tokens of answers, end tokens included."""
    mask: Leaf
    """[b, s] bool, False at padding."""
    task: Leaf
    """[b] int32: indices into `TASKS`."""
    truth: Leaf
    """[b, attributes] int32: numbers of the values, in the order of `ATTRIBUTES`."""


class AuxiliaryHead(nn.Module):
    """Auxiliary head: predicts every attribute from a picture's visual tokens."""

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"]) -> dict[str, Float[Array, "b _"]]:
        """Returns the logits of each attribute's values."""
        return attention_pool_logits(tokens, {name: len(values) for name, values in ATTRIBUTES.items()}, maps=2)


@dataclass(frozen=True)
class VQAReader:
    """Generates a random conversation about each picture."""

    config: DataConfig
    component: "MLLMComponent"

    def augmentation(self) -> str:
        """Returns a description of the augmentation."""
        return f"talks of {self.component.config.tokens} tokens, shares {self.component.config.task_shares}"

    def empty(self, bucket: Bucket, rows: int) -> VQABatch:
        """Returns a batch of uninitialized rows."""
        length = self.component.config.tokens
        return VQABatch(
            example=np.empty(rows, np.int32),
            skipped=np.empty(rows, np.int32),
            pixels=np.empty((rows, bucket.height, bucket.width, 3), np.uint8),
            input_ids=np.empty((rows, length), np.int32),
            answers=np.empty((rows, length), bool),
            mask=np.empty((rows, length), bool),
            task=np.empty(rows, np.int32),
            truth=np.empty((rows, len(ATTRIBUTES)), np.int32),
        )

    def read(self, picture: Picture, bucket: Bucket, rng: np.random.Generator, batch: VQABatch, row: int) -> None:
        """Writes the picture with a conversation about it to `row`."""
        batch.pixels[row] = picture.render(bucket.height)
        batch.truth[row] = numbers(picture.identity, picture.scene)
        batch.task[row] = task = rng.choice(len(TASKS), p=self.component.config.task_shares)
        turns = (self._describe, self._imagine, self._answer)[task](picture, rng)
        batch.input_ids[row], batch.answers[row], batch.mask[row] = self.component.tokenize(turns)

    def _describe(self, picture: Picture, rng: np.random.Generator) -> Conversation:
        return [(DESCRIBE, caption(picture.identity, picture.scene))]

    def _imagine(self, picture: Picture, rng: np.random.Generator) -> Conversation:
        """Returns a prompt and a caption of a right picture, whose subject is never one of the test split."""
        while True:
            kind, reasoning = random_kind(rng)
            if fits(kind, picture.identity, picture.scene):
                prompt = write(rng, kind, reasoning, picture.identity, picture.scene, held_out=False)
                if held_out(prompt.identity(picture.identity)) is HeldOut.NOTHING:
                    break
        requested = tuple(name for name, _ in prompt.asks)
        return [(prompt.text, caption(prompt.identity(picture.identity), prompt.scene(picture.scene), only=requested))]

    def _answer(self, picture: Picture, rng: np.random.Generator) -> Conversation:
        names = rng.choice(list(QUESTIONS), self.component.config.questions, replace=False)
        return [(QUESTIONS[name], answer(picture, name)) for name in names]


@dataclass(frozen=True)
class MLLMComponent:
    """The MLLM and its auxiliary head; see `pretrain.component.Component`."""

    model: SubjectModel
    config: MLLMPretrainConfig
    size: int
    encoder: PromptEncoder
    reference: ReferenceConfig

    name = "mllm"
    bins: ClassVar[Mapping[str, BinnedMetrics]] = {
        "by_task": BinnedMetrics("loss_task", TASKS),
        "seen": BinnedMetrics("seen", tuple(ATTRIBUTES)),
    }

    @property
    def meanings(self) -> dict[str, str]:
        """Description of each number of `evaluate`."""
        meanings = {f"mllm/{name}": f"Share of right answers to “{question}”" for name, question in QUESTIONS.items()}
        seen = "Share of attributes that are read right off the tokens that the eye gives the decoder"
        return meanings | {"mllm/mean": "Their mean", "mllm/least": "The least of them", "mllm/seen": seen}

    def init(self, key: jax.Array) -> Params:
        """Returns random parameters."""
        width = self.model.config.mllm.text.hidden_size
        seen = AuxiliaryHead().init(jax.random.fold_in(key, 1), jnp.zeros((1, 1, width)))
        return {"mllm": init_params(self.model.stacked.mllm, key), "seen": seen["params"]}

    def frozen(self) -> Params:
        """Returns no parameters, because the MLLM builds on no other component."""
        return {}

    def source(self, pictures: PictureSource, threads: int) -> PictureSource:
        """Returns the pictures."""
        return pictures

    def reader(self, data: DataConfig) -> VQAReader:
        """Returns a reader of conversations."""
        return VQAReader(data, self)

    @cached_property
    def _separator_ids(self) -> tuple[list[int], list[int]]:
        """Token ids between an answer and the next question, and after that question."""
        return self.encoder.ids("<|im_end|>\n<|im_start|>user"), self.encoder.ids("<|im_end|>\n<|im_start|>assistant\n")

    def tokenize(self, turns: Conversation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns token ids, answer mask and attention mask, each [tokens]; longer conversations are truncated."""
        first = self.encoder(turns[0][0], 1)
        ids: list[int] = first.input_ids[0][first.attention_mask[0]].tolist()
        answers: list[bool] = []
        following, tail = self._separator_ids
        for i, (question, reply) in enumerate(turns):
            if i:
                ids += following[1:] + self.encoder.ids("\n" + question) + tail
            answers += [False] * (len(ids) - len(answers))
            ids += self.encoder.ids(reply) + following[:1]
            answers += [True] * (len(ids) - len(answers))
        length = self.config.tokens
        there = min(len(ids), length)
        row, answering, mask = np.zeros(length, np.int32), np.zeros(length, bool), np.arange(length) < there
        row[:there], answering[:there] = ids[:there], answers[:there]
        return row, answering, mask

    def losses(
        self, params: Params, frozen: Params, batch: VQABatch, key: Array
    ) -> tuple[Float[Array, " b"], dict[str, Float[Array, "two n"]]]:
        """Returns the losses: cross entropy of the answers, and of the auxiliary head in vision-only rows.

        Every token of an answer has the same weight in the batch, however long its row is.
        """
        rows, vision_only = len(batch.example), int(self.config.vision_only_share * len(batch.example))
        talks, pixels, truth = (
            jax.tree.map(lambda x: x[vision_only:], batch),
            batch.pixels[:vision_only],
            batch.truth[:vision_only],
        )
        answers = talks.answers[:, 1:].astype(jnp.float32)
        logits = self._logits(params, talks)[:, :-1]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, talks.input_ids[:, 1:]) * answers
        by_row, tasks = each.sum(axis=1), jax.nn.one_hot(talks.task, len(TASKS))
        by_task = jnp.stack([by_row @ tasks, answers.sum(axis=1) @ tasks])
        entropies, right = [], []
        for found, true in zip(self._auxiliary_logits(params, pixels).values(), truth.T, strict=True):
            entropies.append(optax.softmax_cross_entropy_with_integer_labels(found, true))
            right.append((found.argmax(axis=1) == true).sum())
        seen = jnp.stack([jnp.stack(right), jnp.full(len(right), vision_only)]).astype(jnp.float32)
        weight = self.config.auxiliary_weight * rows / max(1, vision_only)
        losses = jnp.concatenate([weight * jnp.stack(entropies).mean(axis=0), by_row * rows / answers.sum()])
        return losses, {"by_task": by_task, "seen": seen}

    def evaluate(self, params: Params, frozen: Params) -> Iterator[tuple[str, Value]]:
        """Evaluates each question alone; an answer is right if every token of it is the most likely one."""
        source, right = PictureSource(Split.TEST, self.config.num_eval_examples, self.size), jax.jit(self._right)
        pictures, size = [source[i] for i in range(len(source))], self.config.batch_size
        pixels = np.stack([picture.render(self.size) for picture in pictures])
        truth = np.stack([numbers(picture.identity, picture.scene) for picture in pictures])
        accuracies = {}
        for name, question in QUESTIONS.items():
            counts = []
            for first in range(0, len(source), size):
                talks = [self.tokenize([(question, answer(p, name))]) for p in pictures[first : first + size]]
                ids, answers, mask = (np.stack(each) for each in zip(*talks, strict=True))
                length = -(-int(mask.sum(axis=1).max()) // 16) * 16
                ids, answers, mask = ids[:, :length], answers[:, :length], mask[:, :length]
                rows, zero = slice(first, first + size), np.zeros(len(ids), np.int32)
                questions = VQABatch(zero, zero, pixels[rows], ids, answers, mask, task=zero, truth=truth[rows])
                counts.append(right(params, questions))
            accuracies[name] = float(np.concatenate(counts).mean())
            yield f"mllm/{name}", accuracies[name]
        yield "mllm/mean", float(np.mean(list(accuracies.values())))
        yield "mllm/least", min(accuracies.values())
        auxiliary_logits = jax.jit(self._auxiliary_logits)
        found = [auxiliary_logits(params, pixels[first : first + size]) for first in range(0, len(source), size)]
        seen = [np.concatenate([np.argmax(each[name], axis=1) for each in found]) for name in ATTRIBUTES]
        yield "mllm/seen", float((np.stack(seen, axis=1) == truth).mean())

    def _right(self, params: Params, batch: VQABatch) -> Bool[Array, " b"]:
        guesses = self._logits(params, batch)[:, :-1].argmax(axis=-1)
        return jnp.all((guesses == batch.input_ids[:, 1:]) | ~batch.answers[:, 1:], axis=1)

    def _logits(self, params: Params, batch: VQABatch) -> Float[Array, "b s vocab"]:
        variables, tiles = {"params": params["mllm"]}, normalize_tiles(batch.pixels, self.reference)
        hidden: Any = self.model.mllm.apply(variables, batch.input_ids, batch.mask, tiles)
        logits: Any = self.model.mllm.apply(variables, hidden[-1], method="logits")
        return logits.astype(jnp.float32)

    def _auxiliary_logits(
        self, params: Params, pixels: UInt8[Array, "b tile tile 3"]
    ) -> dict[str, Float[Array, "b _"]]:
        """Returns the auxiliary head's logits of each attribute."""
        tiles = normalize_tiles(pixels, self.reference)
        tokens: Any = self.model.mllm.apply({"params": params["mllm"]}, tiles, method="see")
        logits: Any = AuxiliaryHead().apply({"params": params["seen"]}, tokens.astype(jnp.float32))
        return logits
