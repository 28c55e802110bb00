"""Prompt and number of references -> token ids with a fixed layout, for the MLLM and for CLIP."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mllmsubj.errors import UserError
from mllmsubj.typing import Array, Int

IMAGE_START, IMAGE_TOKEN, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"


@dataclass(frozen=True)
class PromptConfig:
    """The chat template around a prompt."""

    system: str
    """System message. InternVL3's own is in Chinese; any will do as long as training and sampling agree."""
    max_tokens: int
    """Longest prompt for the MLLM, template's tail included."""
    pad_to: int
    """Prompts are padded to a multiple of this, so that few lengths are compiled."""
    clip_tokens: int
    """Length of CLIP's sequence: 77."""
    pooled: Literal["prompt", "empty"]
    """What CLIP's pooled vector reads: "prompt", or "empty" for the empty prompt."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "pad_to", "clip_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"config key prompt.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class PromptTokens:
    """One prompt; ids are int32 [1, length]."""

    input_ids: Int[Array, "1 s"]
    attention_mask: Array
    clip_ids: Int[Array, "1 u"]
    text: tuple[int, int]
    """Start and stop of the prompt's tokens, the template's tail and the padding."""
    images: tuple[tuple[int, int], ...]
    """Start and stop of each reference's visual tokens."""


class PromptEncoder:
    """The two tokenizers of a checkpoint and its template.

    Only the template's special tokens are special: "<|im_end|>" in a prompt is ten letters like any other.
    """

    def __init__(
        self, mllm_folder: Path, clip_folder: Path, config: PromptConfig, *, image_tokens: int, image_token_id: int
    ):
        """`image_tokens`: visual tokens of one reference, `image_token_id` each."""
        self.config, self.image_tokens = config, image_tokens
        self._mllm, self._clip = _tokenizer(mllm_folder), _tokenizer(clip_folder)
        self._lock = threading.Lock()  # a call may set the tokenizer's options: none may while another thread reads
        ids = self.ids(IMAGE_TOKEN)
        if ids != [image_token_id] or image_token_id in self._plain_ids(IMAGE_TOKEN):
            raise UserError(
                f"{mllm_folder}: {IMAGE_TOKEN} must be one special token, {image_token_id} as in the config's "
                f"model.mllm.image_token_id; it is {ids}"
            )
        self._heads: dict[int, tuple[list[int], tuple[tuple[int, int], ...]]] = {}
        self._tail = self.ids("<|im_end|>\n<|im_start|>assistant\n")
        self._no_clip_ids = self._clip_ids("") if config.pooled == "empty" else None

    def __call__(self, prompt: str, references: int, text_tokens: int | None = None) -> PromptTokens:
        """Ids of `<system> <references> prompt <tail>`; raises UserError for a prompt that is too long.

        With `text_tokens`, prompt and tail are padded to exactly that many, so that all prompts are equally long.
        """
        head, images = self._head(references)
        lead = "\n" if references else ""
        text = self._plain_ids(lead + prompt) + self._tail
        limit = self.config.max_tokens if text_tokens is None else text_tokens
        if len(text) > limit:
            advice = "this model reads" if text_tokens is None else "config key data.prompt_tokens allows"
            raise UserError(f"the prompt has {len(text)} tokens; {advice} at most {limit}, shorten it")
        if text_tokens is not None:
            padding = text_tokens - len(text)
        else:
            padding = -len(text) % self.config.pad_to if prompt else 0
        ids = np.asarray([head + text + [self._mllm.pad_token_id] * padding], np.int32)
        mask = np.arange(ids.shape[1])[None] < len(head) + len(text)
        clip_ids = self._clip_ids(prompt) if self._no_clip_ids is None else self._no_clip_ids
        return PromptTokens(ids, mask, clip_ids, (len(head), ids.shape[1]), images)

    def layout(self, references: int, text_tokens: int) -> tuple[tuple[int, int], tuple[tuple[int, int], ...]]:
        """`text` and `images` of every prompt that is padded to `text_tokens`."""
        head, images = self._head(references)
        return (len(head), len(head) + text_tokens), images

    def _head(self, references: int) -> tuple[list[int], tuple[tuple[int, int], ...]]:
        """Ids of `<system> <references>`, and where each reference lies in them; made once."""
        if references not in self._heads:
            head = self.ids(f"<|im_start|>system\n{self.config.system}<|im_end|>\n<|im_start|>user\n")
            start, token, end = (self.ids(name) for name in (IMAGE_START, IMAGE_TOKEN, IMAGE_END))
            newline, images = self.ids("\n"), []
            for _ in range(references):
                head += start
                images.append((len(head), len(head) + self.image_tokens))
                head += token * self.image_tokens + end
                head += newline if len(images) < references else []
            self._heads[references] = head, tuple(images)
        return self._heads[references]

    def ids(self, text: str) -> list[int]:
        """The MLLM's ids of a text whose special tokens are meant."""
        with self._lock:
            return self._mllm(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _plain_ids(self, text: str) -> list[int]:
        """Ids of a user's text, which holds no special tokens."""
        with self._lock:
            ids = self._mllm(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return ids["input_ids"]

    def _clip_ids(self, text: str) -> Int[Array, "1 u"]:
        length = self.config.clip_tokens
        with self._lock:
            ids = self._clip(text, padding="max_length", truncation=True, max_length=length, split_special_tokens=True)
        return np.asarray([ids["input_ids"]], np.int32)


def _tokenizer(folder: Path):
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it advises PyTorch, which tokenizers do not need
    from transformers import AutoTokenizer  # seconds to import: only where a prompt is read

    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{folder} holds no tokenizer; it should have tokenizer.json and tokenizer_config.json")
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # what a damaged file raises depends on which and where
        raise UserError(f"cannot read the tokenizer in {folder}: {' '.join(str(error).split())}") from None
