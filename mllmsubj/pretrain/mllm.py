"""The tiny MLLM: it describes pictures, answers questions about them, and says what a prompt about one asks for.

Next-token loss on the answers alone, in the chat template that the subject model uses, so that the layers it reads
carry what a picture shows and what a prompt makes of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mllmsubj.data.batch import Rows
from mllmsubj.data.images import ReferenceConfig
from mllmsubj.data.plan import Bucket
from mllmsubj.data.prompts import PromptEncoder
from mllmsubj.data.settings import DataConfig
from mllmsubj.data.toyworld import Picture, Split, caption
from mllmsubj.data.toyworld.examples import HeldOut, held_out
from mllmsubj.data.toyworld.pictures import PictureSource
from mllmsubj.data.toyworld.prompts import fits, random_kind, write
from mllmsubj.data.toyworld.questions import DESCRIBE, QUESTIONS, answer
from mllmsubj.evals.evaluator import Value
from mllmsubj.models.layers import init_params
from mllmsubj.models.subject import SubjectModel
from mllmsubj.pretrain.settings import MLLMPartConfig
from mllmsubj.train.metrics import Bins
from mllmsubj.typing import Array, Float, Leaf, Params

TASKS = ("describe", "imagine", "answer")

Turns = list[tuple[str, str]]
"""What is asked and what is answered, in order."""


@flax.struct.dataclass
class Talks(Rows):
    """A picture each, and talk about it."""

    pixels: Leaf
    """[b, tile, tile, 3] uint8."""
    input_ids: Leaf
    """[b, s] int32."""
    answers: Leaf
    """[b, s] bool: tokens that answer, and the end of each answer."""
    mask: Leaf
    """[b, s] bool, False at padding."""
    task: Leaf
    """[b] int32, numbers in `TASKS`."""


@dataclass(frozen=True)
class TalkReader:
    """Makes up a talk about each picture."""

    config: DataConfig
    part: "MLLMPart"

    def augmentation(self) -> str:
        return f"talks of {self.part.config.tokens} tokens, shares {self.part.config.shares}"

    def empty(self, bucket: Bucket, rows: int) -> Talks:
        length = self.part.config.tokens
        return Talks(
            example=np.empty(rows, np.int32),
            skipped=np.empty(rows, np.int32),
            pixels=np.empty((rows, bucket.height, bucket.width, 3), np.uint8),
            input_ids=np.empty((rows, length), np.int32),
            answers=np.empty((rows, length), bool),
            mask=np.empty((rows, length), bool),
            task=np.empty(rows, np.int32),
        )

    def read(self, picture: Picture, bucket: Bucket, rng: np.random.Generator, batch: Talks, row: int) -> None:
        batch.pixels[row] = picture.render(bucket.height)
        batch.task[row] = task = rng.choice(len(TASKS), p=self.part.config.shares)
        turns = (self._describe, self._imagine, self._answer)[task](picture, rng)
        batch.input_ids[row], batch.answers[row], batch.mask[row] = self.part.talk(turns)

    def _describe(self, picture: Picture, rng: np.random.Generator) -> Turns:
        return [(DESCRIBE, caption(picture.identity, picture.scene))]

    def _imagine(self, picture: Picture, rng: np.random.Generator) -> Turns:
        """A prompt, answered by what a right picture shows; nothing of the answer is of the test split."""
        while True:
            kind, reasoning = random_kind(rng)
            if fits(kind, picture.identity, picture.scene):
                prompt = write(rng, kind, reasoning, picture.identity, picture.scene, held_out=False)
                if held_out(prompt.identity(picture.identity)) is HeldOut.NOTHING:
                    break
        asked = tuple(name for name, _ in prompt.asks)
        return [(prompt.text, caption(prompt.identity(picture.identity), prompt.scene(picture.scene), only=asked))]

    def _answer(self, picture: Picture, rng: np.random.Generator) -> Turns:
        names = rng.choice(list(QUESTIONS), self.part.config.questions, replace=False)
        return [(QUESTIONS[name], answer(picture, name)) for name in names]


@dataclass(frozen=True)
class MLLMPart:
    """See `pretrain.part.Part`."""

    model: SubjectModel
    config: MLLMPartConfig
    size: int
    encoder: PromptEncoder
    reference: ReferenceConfig

    name = "mllm"
    bins: ClassVar[Mapping[str, Bins]] = {"by_task": Bins("loss_task", TASKS)}

    @property
    def meanings(self) -> dict[str, str]:
        """See `Part`."""
        said = {f"mllm/{name}": f"Share of right answers to “{question}”" for name, question in QUESTIONS.items()}
        return said | {"mllm/mean": "Their mean", "mllm/least": "The least of them"}

    def init(self, key: jax.Array) -> Params:
        return {"mllm": init_params(self.model.stacked.mllm, key)}

    def frozen(self) -> Params:
        return {}

    def source(self, pictures: PictureSource, threads: int) -> PictureSource:
        return pictures

    def reader(self, data: DataConfig) -> TalkReader:
        return TalkReader(data, self)

    @cached_property
    def _between(self) -> tuple[list[int], list[int]]:
        """Ids between an answer and the next question, and after that question."""
        return self.encoder.ids("<|im_end|>\n<|im_start|>user"), self.encoder.ids("<|im_end|>\n<|im_start|>assistant\n")

    def talk(self, turns: Turns) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, which of them answer, and which are there: each [tokens]. What is too long is cut off."""
        first = self.encoder(turns[0][0], 1)
        ids: list[int] = first.input_ids[0][first.attention_mask[0]].tolist()
        answers: list[bool] = []
        following, tail = self._between
        for i, (asked, said) in enumerate(turns):
            if i:
                ids += following[1:] + self.encoder.ids("\n" + asked) + tail
            answers += [False] * (len(ids) - len(answers))
            ids += self.encoder.ids(said) + following[:1]
            answers += [True] * (len(ids) - len(answers))
        length = self.config.tokens
        there = min(len(ids), length)
        row, answering, mask = np.zeros(length, np.int32), np.zeros(length, bool), np.arange(length) < there
        row[:there], answering[:there] = ids[:there], answers[:there]
        return row, answering, mask

    def losses(
        self, params: Params, frozen: Params, batch: Talks, key: Array
    ) -> tuple[Float[Array, " b"], dict[str, Float[Array, "two n"]]]:
        """Cross entropy of each row's answers, so weighted that a token counts the same in every row."""
        logits = self._logits(params, batch)
        answers = batch.answers[:, 1:].astype(jnp.float32)
        each = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], batch.input_ids[:, 1:]) * answers
        rows, tasks = each.sum(axis=1), jax.nn.one_hot(batch.task, len(TASKS))
        by_task = jnp.stack([rows @ tasks, answers.sum(axis=1) @ tasks])
        return rows * len(rows) / answers.sum(), {"by_task": by_task}

    def judge(self, params: Params, frozen: Params) -> Iterator[tuple[str, Value]]:
        """Each question alone; an answer is right if every token of it is the most likely one."""
        source, right = PictureSource(Split.TEST, self.config.judged, self.size), jax.jit(self._right)
        shares = {}
        for name, question in QUESTIONS.items():
            counts = []
            for first in range(0, len(source), self.config.batch_size):
                pictures = [source[i] for i in range(first, min(first + self.config.batch_size, len(source)))]
                talks = [self.talk([(question, answer(picture, name))]) for picture in pictures]
                ids, answers, mask = (np.stack(each) for each in zip(*talks, strict=True))
                length = -(-int(mask.sum(axis=1).max()) // 16) * 16
                zero, pixels = np.zeros(len(ids), np.int32), np.stack([p.render(self.size) for p in pictures])
                talk = Talks(zero, zero, pixels, ids[:, :length], answers[:, :length], mask[:, :length], zero)
                counts.append(np.asarray(right(params, talk)))
            shares[name] = float(np.concatenate(counts).mean())
            yield f"mllm/{name}", shares[name]
        yield "mllm/mean", float(np.mean(list(shares.values())))
        yield "mllm/least", min(shares.values())

    def _right(self, params: Params, batch: Talks) -> Array:
        """[b] bool."""
        guesses = self._logits(params, batch)[:, :-1].argmax(axis=-1)
        return jnp.all((guesses == batch.input_ids[:, 1:]) | ~batch.answers[:, 1:], axis=1)

    def _logits(self, params: Params, batch: Talks) -> Float[Array, "b s vocab"]:
        mean, std = (jnp.asarray(x, jnp.float32) for x in (self.reference.mean, self.reference.std))
        tiles = (batch.pixels.astype(jnp.float32) / 255.0 - mean) / std
        variables = {"params": params["mllm"]}
        hidden: Any = self.model.mllm.apply(variables, batch.input_ids, batch.mask, tiles)
        logits: Any = self.model.mllm.apply(variables, hidden[-1], method="logits")
        return logits.astype(jnp.float32)
