"""Tokenization of a prompt with references into token ids of a fixed layout, for the MLLM and for CLIP."""

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mllmsubj.config.data import PromptConfig
from mllmsubj.errors import DataError
from mllmsubj.typing import Array, Int

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IMAGE_START, IMAGE_TOKEN, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"


@dataclass(frozen=True)
class PromptTokens:
    """Tokens of one prompt; ids are int32 [1, length]."""

    input_ids: Int[Array, "1 s"]
    attention_mask: Array
    clip_ids: Int[Array, "1 u"]
    text: tuple[int, int]
    """Start and stop in `input_ids` of the prompt, the end of the template, and the padding."""
    images: tuple[tuple[int, int], ...]
    """Start and stop in `input_ids` of each reference's visual tokens."""


class PromptEncoder:
    """Encoder of prompts with a checkpoint's two tokenizers and its template.

    Special tokens are recognized in the template only: "<|im_end|>" in a prompt is encoded as plain text.
    """

    def __init__(
        self, mllm_folder: Path, clip_folder: Path, config: PromptConfig, *, image_tokens: int, image_token_id: int
    ) -> None:
        """Reads both tokenizers; a reference is `image_tokens` times the visual token `image_token_id`."""
        self.config, self.image_tokens = config, image_tokens
        self._mllm, self._pad = _read_tokenizer(mllm_folder)
        self._mllm.no_truncation()
        self._mllm.no_padding()
        self._clip, pad = _read_tokenizer(clip_folder)
        self._clip.enable_truncation(config.clip_tokens)
        self._clip.enable_padding(pad_id=pad, pad_token=self._clip.id_to_token(pad), length=config.clip_tokens)
        self._clip.encode_special_tokens = True
        self._lock = threading.Lock()  # `_ids` sets an option of the tokenizer, which all threads share
        ids = self.ids(IMAGE_TOKEN)
        if ids != [image_token_id] or image_token_id in self._plain_ids(IMAGE_TOKEN):
            raise DataError(
                f"{mllm_folder}: {IMAGE_TOKEN} must be one special token, {image_token_id} as in the config's "
                f"model.mllm.image_token_id; it is {ids}"
            )
        self._heads: dict[int, tuple[list[int], tuple[tuple[int, int], ...]]] = {}
        self._tail = self.ids("<|im_end|>\n<|im_start|>assistant\n")
        self._no_clip_ids = self._clip_ids("") if config.pooled == "empty" else None

    def __call__(self, prompt: str, references: int, text_tokens: int | None = None) -> PromptTokens:
        """Encodes `<system> <references> prompt <tail>`; raises UserError for a prompt that is too long.

        With `text_tokens`, prompt and tail are padded to exactly that number of tokens, so that all lengths are equal.
        """
        head, images = self._head(references)
        lead = "\n" if references else ""
        text = self._plain_ids(lead + prompt) + self._tail
        limit = self.config.max_tokens if text_tokens is None else text_tokens
        if len(text) > limit:
            advice = "this model reads" if text_tokens is None else "config key data.prompt_tokens allows"
            raise DataError(f"the prompt has {len(text)} tokens; {advice} at most {limit}, shorten it")
        if text_tokens is not None:
            padding = text_tokens - len(text)
        else:
            padding = -len(text) % self.config.pad_to_multiple if prompt else 0
        ids = np.asarray([head + text + [self._pad] * padding], np.int32)
        mask = np.arange(ids.shape[1])[None] < len(head) + len(text)
        clip_ids = self._clip_ids(prompt) if self._no_clip_ids is None else self._no_clip_ids
        return PromptTokens(ids, mask, clip_ids, (len(head), ids.shape[1]), images)

    def layout(self, references: int, text_tokens: int) -> tuple[tuple[int, int], tuple[tuple[int, int], ...]]:
        """Returns `text` and `images` of all prompts that are padded to `text_tokens`."""
        head, images = self._head(references)
        return (len(head), len(head) + text_tokens), images

    def _head(self, references: int) -> tuple[list[int], tuple[tuple[int, int], ...]]:
        """Returns the cached ids of `<system> <references>`, and the start and stop of each reference in them."""
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
        """Returns the MLLM's ids of a text in which special tokens are recognized."""
        return self._ids(text, plain=False)

    def _plain_ids(self, text: str) -> list[int]:
        """Returns the MLLM's ids of a user's text, in which special tokens are plain text."""
        return self._ids(text, plain=True)

    def _ids(self, text: str, plain: bool) -> list[int]:
        with self._lock:
            self._mllm.encode_special_tokens = plain
            return self._mllm.encode(text, add_special_tokens=False).ids

    def _clip_ids(self, text: str) -> Int[Array, "1 u"]:
        return np.asarray([self._clip.encode(text).ids], np.int32)


NAMED_TOKENS = {"bos_token", "eos_token", "pad_token", "unk_token"}
SELF_CONTAINED = {"backend", "model_max_length", "tokenizer_class", *NAMED_TOKENS}
"""Keys of tokenizer_config.json that do not change the ids that tokenizer.json defines."""


def _read_tokenizer(folder: Path) -> "tuple[Tokenizer, int]":
    """Returns the tokenizer in a folder saved by transformers, and the id of its padding token.

    transformers takes a second to import, and its `AutoTokenizer` imports PyTorch if it is installed, so each is
    imported only for a folder that requires it.
    """
    names, settings = {path.name for path in folder.glob("*.json")}, folder / "tokenizer_config.json"
    if not names & {"tokenizer.json", settings.name}:
        raise DataError(f"{folder} holds no tokenizer; it should have tokenizer.json and tokenizer_config.json")
    try:
        config: dict[str, Any] = json.loads(settings.read_text()) if settings.name in names else {}
        if names == {"tokenizer.json", settings.name} and (alone := _read_alone(folder, config)):
            return alone
        loaded = _tokenizer_class(config, names).from_pretrained(str(folder), local_files_only=True)
        return loaded.backend_tokenizer, loaded.pad_token_id
    except Exception as error:  # damaged files raise many types
        raise DataError(f"cannot read the tokenizer in {folder}: {' '.join(str(error).split())}") from error


def _read_alone(folder: Path, config: dict[str, Any]) -> "tuple[Tokenizer, int] | None":
    """Returns the tokenizer from tokenizer.json alone, or None if transformers would change it."""
    if config.get("tokenizer_class") != "TokenizersBackend" or config.keys() - SELF_CONTAINED:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    known = all(config[name] in special for name in NAMED_TOKENS & config.keys())
    pad = tokenizer.token_to_id(config["pad_token"]) if known and "pad_token" in config else None
    return None if pad is None else (tokenizer, pad)


def _tokenizer_class(config: dict[str, Any], names: set[str]) -> Any:
    """Returns the class in transformers that reads a folder.

    For the two names below, `AutoTokenizer` would choose the same class unless the folder has a model's config.json.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # tokenizers need no PyTorch
    import transformers

    name = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    direct = name in ("CLIPTokenizer", "Qwen2Tokenizer") and "config.json" not in names and "auto_map" not in config
    return getattr(transformers, name) if direct else transformers.AutoTokenizer
