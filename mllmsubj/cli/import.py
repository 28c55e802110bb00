"""Converts Hugging Face folders of InternVL, FLUX and CLIP to a checkpoint to train on.

mllmsubj import --mllm=DIR --transformer=DIR --vae=DIR [--clip=DIR] --workdir=DIR [--config=FILE] [--dtype=bfloat16]

The folders are as transformers and diffusers save them (InternVL3-8B-hf; FLUX.1-dev, or its transformer and vae). Train
with mllmsubj train --config=… --config.train.weights=WORKDIR. The same command resumes an interrupted import.
"""

from collections.abc import Mapping
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from mllmsubj.cli.files import workdir_path
from mllmsubj.config.overrides import apply_overrides, parse, split_overrides
from mllmsubj.errors import UserError

REQUIRED = ("mllm", "transformer", "vae", "workdir")


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    for name, what in (
        ("mllm", "folder of InternVL, with its tokenizer"),
        ("transformer", "folder of FLUX's transformer, or of all of FLUX"),
        ("vae", "folder of FLUX's autoencoder, or of all of FLUX"),
        ("clip", "folder of CLIP's text encoder; by default text_encoder beside the transformer"),
        ("tokenizer", "folder of the MLLM's tokenizer, by default that of --mllm"),
        ("clip_tokenizer", "folder of CLIP's tokenizer; unless told, tokenizer beside CLIP, or CLIP's folder"),
        ("workdir", "checkpoint to write"),
    ):
        flags.DEFINE_string(name, None, what, flag_values=values)
    flags.DEFINE_string("config", "paper", "config of the checkpoint, by name or file", flag_values=values)
    flags.DEFINE_enum(
        "dtype", "bfloat16", ("bfloat16", "float32"), "dtype of the parameters on disk", flag_values=values
    )


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Imports the models; raises errors in the flags and folders before any tensor is read."""
    argv, overrides = split_overrides(argv)
    parse(values, argv)
    for name in REQUIRED:
        if not values[name].value:
            raise UserError(f"no {name}; import with --mllm=DIR --transformer=DIR --vae=DIR --workdir=DIR")

    import numpy as np  # the imports start JAX, so they come after the checks of the flags
    from tqdm import tqdm

    from mllmsubj.checkpoints.importing.models import open_model
    from mllmsubj.checkpoints.importing.run import import_models, refuse_existing
    from mllmsubj.checkpoints.importing.sizes import with_sizes
    from mllmsubj.config.load import load_config

    workdir = workdir_path(values.workdir)
    refuse_existing(workdir)
    config = apply_overrides(load_config(values.config), overrides)
    folders, dtype = _folders(values), np.dtype(values.dtype)
    models = [open_model(role, folder, dtype) for role, folder in folders.items()]
    config = with_sizes(config, {model.role: model.config for model in models})
    tokenizers = _tokenizers(values, folders)
    _check_tokenizers(config, tokenizers)
    size = sum(tensor.stop - tensor.start for model in models for tensor in model.tensors.values())
    with tqdm(total=size, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        import_models(workdir, config, models, tokenizers, dtype, bar.update)
    print(f"{workdir}: train with mllmsubj train --config=… --config.train.weights={workdir}")


def _folders(values: flags.FlagValues) -> dict[str, Path]:
    """Returns component of the model -> folder of its files."""
    from mllmsubj.checkpoints.importing.models import component_folder

    def given(name: str) -> Path:
        return component_folder(name, Path(values[name].value or "").expanduser())

    folders = {name: given(name) for name in ("mllm", "transformer", "vae")}
    if values.clip:
        return folders | {"clip": given("clip")}
    beside = folders["transformer"].absolute().parent / "text_encoder"
    if not beside.is_dir():
        raise UserError(f"no clip, and no folder {beside}; give --clip=DIR")
    return folders | {"clip": beside}


def _tokenizers(values: flags.FlagValues, folders: Mapping[str, Path]) -> dict[str, Path]:
    """Returns name in the checkpoint -> folder of the tokenizer."""
    beside = folders["clip"].absolute().parent / "tokenizer"
    clip = values.clip_tokenizer or (beside if beside.is_dir() else folders["clip"])
    mllm = values.tokenizer or folders["mllm"]
    return {"tokenizer": Path(mllm).expanduser(), "clip_tokenizer": Path(clip).expanduser()}


def _check_tokenizers(config: ConfigDict, tokenizers: Mapping[str, Path]) -> None:
    """Raises UserError if prompts cannot be encoded with the tokenizers."""
    from mllmsubj.config.schema import Experiment
    from mllmsubj.data.tokenization import PromptEncoder

    experiment = Experiment.from_config(config)
    mllm = experiment.model.mllm
    PromptEncoder(
        tokenizers["tokenizer"],
        tokenizers["clip_tokenizer"],
        experiment.prompt,
        image_tokens=mllm.tokens_per_tile,
        image_token_id=mllm.image_token_id,
    )
