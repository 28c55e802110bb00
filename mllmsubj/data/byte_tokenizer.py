"""The tiny model's tokenizers: byte-level BPE with merges learned from texts, saved in transformers' format."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mllmsubj.data.tokenization import IMAGE_END, IMAGE_START, IMAGE_TOKEN

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MLLM_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE_START, IMAGE_END, IMAGE_TOKEN)
CLIP_SPECIALS = ("<|startoftext|>", "<|endoftext|>")
VOCABULARY = 1024
"""Maximum number of tokens; texts with few words give fewer."""


def save_tokenizers(folder: Path, texts: Iterable[str] = ()) -> None:
    """Writes `tokenizer/` (for the MLLM) and `clip_tokenizer/`; ids 0–255 are bytes, then specials, then merges."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    merges = _merges(list(texts))
    mllm = _tokenizer(MLLM_SPECIALS, merges)
    PreTrainedTokenizerFast(
        tokenizer_object=mllm, pad_token=MLLM_SPECIALS[0], eos_token="<|im_end|>", model_max_length=1024
    ).save_pretrained(folder / "tokenizer")

    clip = _tokenizer(CLIP_SPECIALS, merges)
    start, end = CLIP_SPECIALS
    clip.post_processor = TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(name, clip.token_to_id(name)) for name in CLIP_SPECIALS]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=clip, pad_token=end, bos_token=start, eos_token=end, model_max_length=77
    ).save_pretrained(folder / "clip_tokenizer")


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _merges(texts: list[str]) -> list[tuple[str, str]]:
    """Learns the merges of byte-pair encoding, most frequent first; returns none without texts."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if not texts:
        return []
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=_alphabet(), show_progress=False)
    learner.train_from_iterator(texts, trainer)
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]


def _tokenizer(specials: tuple[str, ...], merges: list[tuple[str, str]]) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    known = dict.fromkeys([*_alphabet(), *specials])
    merges = merges[: VOCABULARY - len(known)]
    known |= dict.fromkeys(map("".join, merges))
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(known)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(merges))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    return tokenizer
