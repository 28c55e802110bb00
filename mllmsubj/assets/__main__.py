"""`make assets`: writes the shipped checkpoint's config and tokenizers again, from configs/tiny.py of this checkout."""

from pathlib import Path

from mllmsubj.checkpoint import config_text
from mllmsubj.data.byte_tokenizer import save_tokenizers
from mllmsubj.experiment import load_config

ASSETS = Path(__file__).parent

if __name__ == "__main__":
    config = load_config(str(ASSETS.parents[1] / "configs" / "tiny.py"))
    (ASSETS / "tiny" / "config.json").write_text(config_text(config))
    save_tokenizers(ASSETS / "tiny")
