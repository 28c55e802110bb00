"""LoRA files that are saved and loaded, compared with diffusers."""

import json

import jax
import numpy as np
import pytest

from mllmsubj import convert
from mllmsubj.errors import UserError
from mllmsubj.models.dit import FluxTransformer
from mllmsubj.models.layers import abstract_params
from mllmsubj.models.lora import LoRAConfig, is_lora
from mllmsubj.tree import flatten, unflatten
from tests.models.test_dit import CONFIG, SIZES, inputs
from tests.small import random_like

ATTENTION = r"transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|"
ATTENTION += r"single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_out)"
TARGETS = ("to_q", "to_k", "to_v", "to_out", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "proj_out")
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a transformer without adapters."""
    from diffusers import FluxTransformer2DModel

    from tests.parity import randomise, save

    theirs = randomise(FluxTransformer2DModel(**SIZES, guidance_embeds=True))
    return save(theirs, tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def base(folder):
    return convert.load_transformer(folder)


@pytest.fixture
def fresh(folder):
    """diffusers' pipeline with the transformer as its only component."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    parts = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return FluxPipeline(transformer=FluxTransformer2DModel.from_pretrained(folder), **dict.fromkeys(parts))


def ours(config, params, lora=None):
    return jax.jit(FluxTransformer(config, lora=lora).apply)({"params": params}, **inputs())


def theirs(pipe):
    import torch

    with torch.no_grad():
        return pipe.transformer(**{name: torch.tensor(value) for name, value in inputs().items()}).sample


def joined(params, lora):
    return unflatten(flatten(params) | flatten(lora))


def save_adapter(folder, seed, rank=4, alpha=8.0, targets=ATTENTION, **options):
    """Saves a random LoRA by diffusers."""
    import torch
    from diffusers import FluxPipeline, FluxTransformer2DModel
    from peft import LoraConfig, get_peft_model_state_dict

    model = FluxTransformer2DModel(**SIZES, guidance_embeds=True)
    model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, **options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    layers = get_peft_model_state_dict(model)
    metadata = model.peft_config["default"].to_dict() if alpha is not None else None
    FluxPipeline.save_lora_weights(folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata)


@pytest.mark.parity
@pytest.mark.parametrize("alpha", [8.0, 4.0])
def test_save_lora_loads_in_diffusers(base, fresh, tmp_path, alpha):
    """A saved LoRA has the same effect in diffusers, and `load_lora` returns the same adapters."""
    from tests.parity import assert_close

    config, params = base
    lora = LoRAConfig(4, alpha, TARGETS)
    random = random_like(abstract_params(FluxTransformer(config, lora=lora)))
    adapters = unflatten({path: leaf for path, leaf in flatten(random).items() if is_lora(path)})
    convert.save_lora(tmp_path, config, lora, adapters)
    (tmp_path / "dla.safetensors").write_bytes((tmp_path / FILE).read_bytes())  # must not be read as the LoRA
    fresh.load_lora_weights(str(tmp_path))
    want = ours(config, joined(params, adapters), lora)
    assert_close(theirs(fresh), want)
    assert np.abs(ours(config, params) - want).max() > 0.1 * np.abs(want).max()

    again, loaded = convert.load_lora(tmp_path, config)
    assert (again.rank, again.alpha, set(again.targets)) == (4, 4.0, set(TARGETS))
    for path, leaf in flatten(loaded).items():
        factor = lora.scale if path.endswith("lora_b") else 1.0
        np.testing.assert_array_equal(leaf, flatten(adapters)[path] * factor)


CASES = {
    "alpha": dict(alpha=8.0),
    "no alpha": dict(alpha=None, rank=3),
    "some targets": dict(targets=["to_k", "proj_mlp"], rank=2),
    "some layers": dict(targets=r"transformer_blocks\.1\.attn\.to_(q|out\.0)"),
    "rank-stabilised": dict(use_rslora=True),
    "patterns": dict(rank_pattern={"to_q": 2}, alpha_pattern={"single_transformer_blocks.1.attn.to_k": 3.0}),
}


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_load_lora_from_diffusers(base, fresh, tmp_path, case):
    from tests.parity import assert_close

    config, params = base
    options = CASES[case]
    if options.get("alpha", 0) is None:
        save_adapter(tmp_path, 0, **options | {"alpha": options["rank"]})
        strip_metadata(tmp_path / FILE)
    else:
        save_adapter(tmp_path, 0, **options)
    fresh.load_lora_weights(str(tmp_path))
    want = theirs(fresh)
    lora, adapters = convert.load_lora(tmp_path, config)
    assert_close(ours(config, joined(params, adapters), lora), want)
    assert_close(ours(config, convert.fold_lora(params, lora, adapters)), want)
    assert np.abs(ours(config, params) - want.numpy()).max() > 0.01 * np.abs(want.numpy()).max()


def strip_metadata(path):
    from safetensors.numpy import load_file, save_file

    save_file(load_file(path), path)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_fold_lora_several_weighted(base, fresh, tmp_path):
    from tests.parity import assert_close

    config, params = base
    weights = {"one": 0.7, "two": -0.4, "three": 1.5}
    every = ["to_q", "proj_out", "ff.net.0.proj", "ff_context.net.2", "norm1.linear", "norm.linear", "x_embedder"]
    for i, (name, weight) in enumerate(weights.items()):
        save_adapter(tmp_path / name, i, rank=2 + i, alpha=4.0, targets=every if i == 2 else ATTENTION)
        fresh.load_lora_weights(str(tmp_path / name), adapter_name=name)
        params = convert.fold_lora(params, *convert.load_lora(tmp_path / name, config, foldable=True), weight)
    fresh.set_adapters(list(weights), list(weights.values()))
    assert_close(ours(config, params), theirs(fresh))


FORMS = {  # format -> (suffixes of names, [(name, (in, out), diffusers' name, rows of its projections)])
    "kohya": (
        (".lora_down.weight", ".lora_up.weight"),
        [
            ("lora_unet_double_blocks_1_img_attn_proj", (32, 32), "transformer_blocks.1.attn", {"to_out.0": [(0, 32)]}),
            (
                "lora_unet_single_blocks_2_linear1",
                (32, 224),
                "single_transformer_blocks.2",
                {"attn.to_q": [(0, 32)], "attn.to_k": [(32, 64)], "attn.to_v": [(64, 96)], "proj_mlp": [(96, 224)]},
            ),
        ],
    ),
    "comfyui": (
        (".lora_A.weight", ".lora_B.weight"),
        [
            (
                "diffusion_model.double_blocks.0.txt_attn.qkv",
                (32, 96),
                "transformer_blocks.0.attn",
                {f"add_{part}_proj": [(32 * i, 32 * i + 32)] for i, part in enumerate("qkv")},
            ),
            (
                "diffusion_model.final_layer.adaLN_modulation.1",
                (32, 64),
                "norm_out",
                {"linear": [(32, 64), (0, 32)]},
            ),
        ],
    ),
    "older diffusers": (
        (".lora.down.weight", ".lora.up.weight"),
        [("transformer.transformer_blocks.0.attn.to_q", (32, 32), "transformer_blocks.0.attn", {"to_q": [(0, 32)]})],
    ),
    "peft": (
        (".lora_A.weight", ".lora_B.weight"),
        [
            (
                "base_model.model.single_transformer_blocks.0.proj_out",
                (160, 32),
                "single_transformer_blocks.0",
                {"proj_out": [(0, 32)]},
            )
        ],
    ),
}


@pytest.mark.parity
@pytest.mark.parametrize("form", FORMS)
def test_load_lora_formats(base, fresh, tmp_path, form):
    """A file has the effect of the same adapters in diffusers' format, unfused and scaled by alpha 6 of rank 2."""
    import torch
    from safetensors.numpy import save_file

    from tests.parity import assert_close

    config, params = base
    (down, up), adapters = FORMS[form]
    rng, tensors, same = np.random.default_rng(0), {}, {}
    for name, (wide, tall), to, rows in adapters:
        a, b = (0.3 * rng.standard_normal(shape).astype(np.float32) for shape in ((2, wide), (tall, 2)))
        tensors |= {name + down: a, name + up: b}
        if form != "peft":
            tensors[f"{name}.alpha"] = np.asarray(6.0, np.float32)
        for module, spans in rows.items():
            same[f"transformer.{to}.{module}.lora_A.weight"] = torch.tensor(a)
            cut = np.concatenate([3.0 * b[start:stop] for start, stop in spans])
            same[f"transformer.{to}.{module}.lora_B.weight"] = torch.tensor(cut)
    if form == "peft":
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6}))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    fresh.load_lora_weights(same)
    folded = convert.fold_lora(params, *convert.load_lora(tmp_path, config, foldable=True))
    assert_close(ours(config, folded), theirs(fresh))


@pytest.fixture
def write(tmp_path):
    """Returns a function that saves tensors of the given shapes."""
    from safetensors.numpy import save_file

    def save(metadata=None, **shapes):
        tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        save_file(tensors, tmp_path / FILE, metadata=metadata)
        return tmp_path / FILE

    return save


TO_Q = "transformer.transformer_blocks.0.attn.to_q"
GOOD = {f"{TO_Q}.lora_A.weight": (2, 32), f"{TO_Q}.lora_B.weight": (32, 2)}
BAD = {
    "another model": ({f"{TO_Q}.lora_A.weight": (2, 64), f"{TO_Q}.lora_B.weight": (64, 2)}, r"\(2, 64\).*\[rank, 32\]"),
    "ranks differ": ({f"{TO_Q}.lora_A.weight": (2, 32), f"{TO_Q}.lora_B.weight": (32, 3)}, r"\(2, 32\) and \(32, 3\)"),
    "half": ({f"{TO_Q}.lora_A.weight": (2, 32)}, "lacks its up projection"),
    "more layers": (
        {"transformer.transformer_blocks.7.attn.to_q.lora_A.weight": (2, 32)},
        "match no projection.*blocks.7",
    ),
    "text encoder": (
        GOOD | {"lora_te1_text_model.lora_down.weight": (2, 8)},
        "match no projection.*lora_te1_text_model",
    ),
    "unknown key": (GOOD | {f"{TO_Q}.lora_B.bias": (32,)}, r"match no projection.*lora_B\.bias"),
    "dora": (GOOD | {f"{TO_Q}.dora_scale": (32,)}, "is DoRA"),
    "xlabs": ({"double_blocks.0.processor.qkv_lora1.down.weight": (2, 32)}, "is XLabs' form"),
    "lokr": ({"transformer.single_transformer_blocks.0.proj_out.lokr_w1": (2, 2)}, "is LoKr"),
    "no adapter here": (
        {
            "transformer.transformer_blocks.0.ff.net.2.lora_A.weight": (2, 128),
            "transformer.transformer_blocks.0.ff.net.2.lora_B.weight": (32, 2),
        },
        r"adapts transformer_blocks\.0\.ff\.net\.2, which have no adapters here.*generate --lora",
    ),
    "empty": ({}, "contains no adapter"),
}


@pytest.mark.parametrize("case", BAD)
def test_load_lora_unsupported(write, case):
    shapes, says = BAD[case]
    with pytest.raises(UserError, match=says):
        convert.load_lora(write(**shapes), CONFIG)


def test_load_lora_invalid_file(write, tmp_path):
    """Missing and damaged files and unsupported metadata are errors."""
    with pytest.raises(UserError, match=r"should hold one LoRA.*has none"):
        convert.load_lora(tmp_path, CONFIG)
    with pytest.raises(UserError, match="is not there"):
        convert.load_lora(tmp_path / "lora.safetensors", CONFIG)
    (tmp_path / "lora.bin").write_bytes(b"PK" + b"x" * 40)
    with pytest.raises(UserError, match="pickle"):
        convert.load_lora(tmp_path / "lora.bin", CONFIG)
    with pytest.raises(UserError, match="is not a valid LoRA config"):
        convert.load_lora(write({"lora_adapter_metadata": "{"}, **GOOD), CONFIG)
    with pytest.raises(UserError, match="use_dora is on"):
        convert.load_lora(write({"lora_adapter_metadata": '{"transformer.use_dora": true}'}, **GOOD), CONFIG)
