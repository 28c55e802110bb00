"""The original single file of FLUX's transformer, compared with diffusers' own converter."""

import json

import numpy as np
import pytest

from mllmsubj import convert
from mllmsubj.convert import flux, flux_original
from mllmsubj.convert.engine import unmatched
from mllmsubj.convert.renames import renamed
from mllmsubj.errors import UserError
from mllmsubj.models.dit import FluxTransformer
from mllmsubj.models.layers import abstract_params
from mllmsubj.tree import flatten
from tests.models.test_dit import SIZES

WIDTH = 32


def shapes(width=WIDTH, head=16, guidance=True, double=2, single=3, channels=16, context=24, pooled=12):
    """Returns name -> shape of every tensor of black-forest-labs' transformer."""
    found = {"img_in": (width, channels), "txt_in": (width, context)}
    embedders = {"time_in": 256, "vector_in": pooled} | ({"guidance_in": 256} if guidance else {})
    for name, size in embedders.items():
        found |= {f"{name}.in_layer": (width, size), f"{name}.out_layer": (width, width)}
    norms = []
    for i in range(double):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            found |= {f"{block}_attn.qkv": (3 * width, width), f"{block}_attn.proj": (width, width)}
            found |= {f"{block}_mlp.0": (4 * width, width), f"{block}_mlp.2": (width, 4 * width)}
            found[f"{block}_mod.lin"] = (6 * width, width)
            norms += [f"{block}_attn.norm.{part}_norm.scale" for part in ("query", "key")]
    for i in range(single):
        block = f"single_blocks.{i}"
        found |= {f"{block}.linear1": (7 * width, width), f"{block}.linear2": (width, 5 * width)}
        found[f"{block}.modulation.lin"] = (3 * width, width)
        norms += [f"{block}.norm.{part}_norm.scale" for part in ("query", "key")]
    found |= {"final_layer.linear": (channels, width), "final_layer.adaLN_modulation.1": (2 * width, width)}
    linear = {f"{name}.weight": shape for name, shape in found.items()}
    return linear | {f"{name}.bias": shape[:1] for name, shape in found.items()} | dict.fromkeys(norms, (head,))


def tensors(seed=0, **sizes):
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes(**sizes).items()}


@pytest.fixture(scope="module", params=[True, False], ids=["guidance", "no-guidance"])
def saved(request, tmp_path_factory):
    """Returns the folder of the original file and a config.json, its tensors, and what diffusers' converter gives."""
    import torch
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders import single_file_utils
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("flux")
    original = tensors(guidance=request.param)
    save_file(original, folder / "flux1-small.safetensors")
    split = torch.split

    def narrower(tensor, sizes, dim):  # diffusers' converter supports one width only
        return split(tensor, [size * WIDTH // 3072 for size in sizes], dim)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "split", narrower)
        names = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(dict(original))
    theirs = FluxTransformer2DModel(**SIZES, guidance_embeds=request.param)
    theirs.load_state_dict(names)
    theirs.save_pretrained(folder / "diffusers")
    (folder / "config.json").write_text((folder / "diffusers" / "config.json").read_text())
    return folder, original, *convert.load_transformer(folder / "diffusers")


def assert_same(found, want):
    found, want = (flatten(tree) for tree in (found, want))
    assert found.keys() == want.keys()
    for path, leaf in want.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


@pytest.mark.parity
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_load_transformer_original(saved, tmp_path, prefix):
    """The original file gives the config and the parameters of diffusers' folder."""
    from safetensors.torch import save_file

    folder, original, config, params = saved
    save_file({prefix + name: tensor for name, tensor in original.items()}, tmp_path / "file.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    for path in (tmp_path, tmp_path / "file.safetensors"):
        found_config, found = convert.load_transformer(path)
        assert found_config == config
        assert_same(found, params)


@pytest.mark.parity
def test_load_transformer_without_config(tmp_path):
    """Heads have FLUX's 128 channels; a config.json of another class is ignored."""
    from safetensors.torch import save_file

    save_file(tensors(width=128, head=128, double=1, single=1), tmp_path / "flux.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    config, params = convert.load_transformer(tmp_path / "flux.safetensors")
    assert (config.num_layers, config.num_single_layers, config.num_attention_heads) == (1, 1, 1)
    assert config.axes_dims_rope == (16, 56, 56)
    assert params["modulation"]["single"]["kernel"].shape == (128, 1, 384)
    save_file(tensors(), tmp_path / "flux.safetensors")
    with pytest.raises(UserError, match=r"heads of 16 channels.*config\.json"):
        convert.load_transformer(tmp_path / "flux.safetensors")


@pytest.mark.parity
def test_load_transformer_mismatched_tensors(saved, tmp_path):
    """The error names every tensor that is missing, unexpected or of another height."""
    import torch
    from safetensors.torch import save_file

    folder, original, *_ = saved
    broken = dict(original)
    del broken["double_blocks.1.txt_attn.proj.bias"]
    broken["single_blocks.9.linear3.weight"] = torch.zeros(3)
    save_file(broken, tmp_path / "file.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"missing .*txt_attn\.proj\.bias.*unexpected .*linear3"):
        convert.load_transformer(tmp_path)
    broken = original | {"single_blocks.0.linear1.weight": torch.zeros(7 * WIDTH + 1, WIDTH)}
    broken["double_blocks.0.img_attn.qkv.weight"] = torch.zeros(WIDTH, WIDTH)
    save_file(broken, tmp_path / "file.safetensors")
    with pytest.raises(UserError, match=r"qkv\.weight' has shape \(32, 32\).*linear1\.weight' has shape \(225, 32\)"):
        convert.load_transformer(tmp_path)


def test_original_table_full_size(paper_config):
    """Each of the 780 tensors of FLUX.1-dev is used once."""
    table = renamed(flux.table(paper_config), flux_original.renames(paper_config))
    names = shapes(3072, 128, True, 19, 38, 64, 4096, 768)
    paths = flatten(abstract_params(FluxTransformer(paper_config)))
    assert unmatched(names, table, paths) == []
    assert len(names) == 780


@pytest.fixture(scope="module")
def paper_config():
    from mllmsubj.config.load import load_config
    from mllmsubj.config.schema import Experiment
    from tests.environment import ROOT

    return Experiment.from_config(load_config(str(ROOT / "configs" / "paper.py"))).model.transformer
