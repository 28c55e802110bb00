"""`make assets`: writes the shipped checkpoint's config and tokenizers again, from configs/tiny.py of this checkout."""

from collections.abc import Iterator
from pathlib import Path

from mllmsubj.checkpoint import config_text
from mllmsubj.data.byte_tokenizer import save_tokenizers
from mllmsubj.data.toyworld import Split, caption, example
from mllmsubj.data.toyworld.questions import DESCRIBE, QUESTIONS, answer
from mllmsubj.experiment import load_config

ASSETS = Path(__file__).parent
TEXTS = 5000
"""Examples of toyworld whose words the tokenizers know."""


def texts(system: str) -> Iterator[str]:
    """What the tiny model reads and writes."""
    for i in range(TEXTS):
        drawn = example(Split.TRAIN, i)
        yield from (drawn.prompt.text, "\n" + drawn.prompt.text, caption(drawn.target.identity, drawn.target.scene))
        yield from (system, "system\n", "user\n", "assistant\n", "\n" + DESCRIBE)
        yield from (f"\n{question}" for question in QUESTIONS.values())
        yield from (answer(drawn.reference, name) for name in QUESTIONS)


if __name__ == "__main__":
    config = load_config(str(ASSETS.parents[1] / "configs" / "tiny.py"))
    (ASSETS / "tiny" / "config.json").write_text(config_text(config))
    save_tokenizers(ASSETS / "tiny", texts(config.prompt.system))
