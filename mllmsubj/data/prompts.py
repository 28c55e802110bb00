"""Prompt and number of references -> token ids with a fixed layout, for the MLLM and for CLIP."""

from dataclasses import dataclass
from pathlib import Path

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
    pooled: str
    """What CLIP's pooled vector reads: "prompt", or "empty" for the empty prompt."""


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
    """The two tokenizers of a checkpoint and its template."""

    def __init__(self, mllm_folder: Path, clip_folder: Path, config: PromptConfig, image_tokens: int):
        """`image_tokens`: visual tokens of one reference."""
        self.config, self.image_tokens = config, image_tokens
        self._mllm, self._clip = _tokenizer(mllm_folder), _tokenizer(clip_folder)

    def __call__(self, prompt: str, references: int) -> PromptTokens:
        """Ids of `<system> <references> prompt <tail>`; raises UserError for a prompt that is too long."""
        head = self._ids(f"<|im_start|>system\n{self.config.system}<|im_end|>\n<|im_start|>user\n")
        start, token, end = (self._ids(name) for name in (IMAGE_START, IMAGE_TOKEN, IMAGE_END))
        newline, images = self._ids("\n"), []
        for _ in range(references):
            head += start
            images.append((len(head), len(head) + self.image_tokens))
            head += token * self.image_tokens + end
            head += newline if len(images) < references else []
        lead = "\n" if references else ""
        text = self._ids(f"{lead}{prompt}<|im_end|>\n<|im_start|>assistant\n")
        if len(text) > self.config.max_tokens:
            raise UserError(
                f"the prompt has {len(text)} tokens; this model reads at most {self.config.max_tokens}, shorten it"
            )
        padding = -len(text) % self.config.pad_to if prompt else 0
        ids = np.asarray([head + text + [self._mllm.pad_token_id] * padding], np.int32)
        mask = np.arange(ids.shape[1])[None] < len(head) + len(text)
        return PromptTokens(ids, mask, self._clip_ids(prompt), (len(head), ids.shape[1]), tuple(images))

    def _ids(self, text: str) -> list[int]:
        return self._mllm(text, add_special_tokens=False)["input_ids"]

    def _clip_ids(self, prompt: str) -> Int[Array, "1 u"]:
        text = prompt if self.config.pooled == "prompt" else ""
        ids = self._clip(text, padding="max_length", truncation=True, max_length=self.config.clip_tokens)["input_ids"]
        return np.asarray([ids], np.int32)


def _tokenizer(folder: Path):
    from transformers import AutoTokenizer  # a second to import: only where a prompt is read

    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{folder} holds no tokenizer; it should have tokenizer.json and tokenizer_config.json")
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
