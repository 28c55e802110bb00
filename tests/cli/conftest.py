"""Fixtures: model folders as diffusers and transformers save them."""

import shutil

import pytest

from mllmsubj.cli import main
from mllmsubj.data.byte_tokenizer import save_tokenizers


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Runs commands in this process, with `tmp_path` as the working directory."""
    monkeypatch.setattr(main, "_set_up", lambda: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def flux(tmp_path_factory):
    """FLUX and InternVL folders as diffusers and transformers save them, with byte tokenizers."""
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, InternVLConfig, InternVLForConditionalGeneration

    from tests.models import test_dit, test_mllm, test_vae
    from tests.parity import randomise

    root = tmp_path_factory.mktemp("hub")
    vision, text = test_mllm.VISION, test_mllm.TEXT | {"vocab_size": 264, "max_position_embeddings": 256}
    mllm = InternVLConfig(vision_config=vision, text_config=text, image_token_id=261, downsample_ratio=0.5)
    randomise(InternVLForConditionalGeneration(mllm)).save_pretrained(root / "mllm", max_shard_size="20KB")
    dit = test_dit.SIZES | {"in_channels": 64}
    transformer = randomise(FluxTransformer2DModel(**dit, guidance_embeds=True))
    transformer.save_pretrained(root / "transformer", max_shard_size="20KB")
    test_vae.build(root / "vae")
    clip = dict(vocab_size=258, hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    clip |= dict(max_position_embeddings=77, bos_token_id=256, eos_token_id=257, pad_token_id=257)
    randomise(CLIPTextModel(CLIPTextConfig(**clip))).save_pretrained(root / "text_encoder")
    save_tokenizers(root / "bytes")
    shutil.copytree(root / "bytes" / "clip_tokenizer", root / "tokenizer")
    shutil.copytree(root / "bytes" / "tokenizer", root / "mllm", dirs_exist_ok=True)
    return root
