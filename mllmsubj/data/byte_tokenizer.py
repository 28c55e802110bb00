"""The tiny model's tokenizers: bytes and special tokens, in the files that transformers reads."""

from pathlib import Path

from mllmsubj.data.prompts import IMAGE_END, IMAGE_START, IMAGE_TOKEN

MLLM_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE_START, IMAGE_END, IMAGE_TOKEN)
CLIP_SPECIALS = ("<|startoftext|>", "<|endoftext|>")


def save_tokenizers(folder: Path) -> None:
    """Writes `tokenizer/` (for the MLLM) and `clip_tokenizer/`; ids 0–255 are bytes, specials follow."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    mllm = _bytes_and(MLLM_SPECIALS)
    PreTrainedTokenizerFast(
        tokenizer_object=mllm, pad_token=MLLM_SPECIALS[0], eos_token="<|im_end|>", model_max_length=1024
    ).save_pretrained(folder / "tokenizer")

    clip = _bytes_and(CLIP_SPECIALS)
    start, end = CLIP_SPECIALS
    clip.post_processor = TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(name, clip.token_to_id(name)) for name in CLIP_SPECIALS]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=clip, pad_token=end, bos_token=start, eos_token=end, model_max_length=77
    ).save_pretrained(folder / "clip_tokenizer")


def _bytes_and(specials: tuple[str, ...]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    return tokenizer
