"""The model card of an exported checkpoint, in Hugging Face's format."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllmsubj.config.schema import Experiment
from mllmsubj.errors import CheckpointError

FLUX_LICENSE = "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md"
PAPER = "https://arxiv.org/abs/2605.26111"


@dataclass(frozen=True)
class BaseModel:
    """A published model whose sizes a component of the checkpoint has."""

    name: str
    license: str
    """Identifier of the license in a card's metadata header."""
    terms: str
    """Name of the license in the card's text."""


DEV = BaseModel(
    "black-forest-labs/FLUX.1-dev", "other", "FLUX.1-dev Non-Commercial License, as is all that is trained from it"
)
SCHNELL = BaseModel("black-forest-labs/FLUX.1-schnell", "apache-2.0", "Apache-2.0")
INTERNVL = BaseModel("OpenGVLab/InternVL3-8B", "mit", "MIT; its Qwen2.5-7B part: Apache-2.0")
CLIP = BaseModel("openai/clip-vit-large-patch14", "mit", "MIT")


def model_card(experiment: Experiment, metrics: Mapping[str, Any], fingerprint: str) -> str:
    """Returns the text of README.md; `metrics` may be empty, and `fingerprint` identifies the checkpoint."""
    flux, mllm = _flux(experiment), _mllm(experiment)
    return "\n".join(
        (
            *_header(flux, mllm),
            "# Subject-driven generation with a multimodal LLM: DLA and LoRA",
            "",
            "Generates a new image of a subject from reference images and a prompt. These are the weights that",
            f"mllmsubj trains, without the frozen models that they need. Method: [arXiv 2605.26111]({PAPER}).",
            f"Exported from checkpoint `{fingerprint}`.",
            "",
            *_files(experiment),
            *_use(experiment, flux),
            *_settings(experiment),
            *_metrics(metrics),
            *_licenses(flux, mllm),
        )
    )


def read_metrics(*folders: Path) -> dict[str, Any]:
    """Returns the first `metrics.json` found in `folders`, or an empty dict; raises UserError if it is malformed."""
    for path in (folder / "metrics.json" for folder in folders):
        if path.is_file():
            try:
                return dict(json.loads(path.read_text()))
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"{path} holds no metrics: {error}") from error
    return {}


def _flux(experiment: Experiment) -> BaseModel | None:
    """Returns the FLUX.1 model with the transformer's sizes, or None for a model of other sizes."""
    dit = experiment.model.transformer
    if (dit.num_layers, dit.num_single_layers, dit.width) != (19, 38, 3072):
        return None
    return DEV if dit.guidance_embeds else SCHNELL


def _mllm(experiment: Experiment) -> BaseModel | None:
    text = experiment.model.mllm.text
    return INTERNVL if (text.num_hidden_layers, text.hidden_size, text.vocab_size) == (28, 3584, 151_674) else None


def _header(flux: BaseModel | None, mllm: BaseModel | None) -> Iterator[str]:
    from huggingface_hub import ModelCardData  # imported here, since only an export needs it

    bases = [base.name for base in (flux, mllm) if base is not None]
    data = ModelCardData(
        base_model=bases or None,
        license="apache-2.0" if flux is None else flux.license,
        license_name="flux-1-dev-non-commercial-license" if flux == DEV else None,
        license_link=FLUX_LICENSE if flux == DEV else None,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["lora", "flux", "subject-driven-generation", "mllmsubj"],
        base_model_relation="adapter" if bases else None,
        ignore_metadata_errors=True,
    )
    yield from ("---", data.to_yaml(), "---", "")


def _files(experiment: Experiment) -> Iterator[str]:
    yield from ("| file | contents |", "|---|---|")
    if experiment.model.lora is not None:
        yield (
            "| `pytorch_lora_weights.safetensors` | LoRA of the transformer in diffusers' form; alpha / rank is "
            "multiplied into `lora_B` |"
        )
    yield (
        "| `dla.safetensors`, `dla_config.json` | the Dual Layer Aggregator in mllmsubj's form: "
        '`mllmsubj.convert.load_dla("DIR")`; kernels are [in, out], layers are stacked in front |'
    )
    yield ""


def _use(experiment: Experiment, flux: BaseModel | None) -> Iterator[str]:
    yield from ("## Use", "")
    if experiment.model.lora is not None:
        name = "your/transformer" if flux is None else flux.name
        yield from (
            "```python",
            "from diffusers import FluxPipeline",
            "",
            f'pipe = FluxPipeline.from_pretrained("{name}")',
            'pipe.load_lora_weights("DIR", weight_name="pytorch_lora_weights.safetensors")',
            "```",
            "",
            "**What that does not do.** The LoRA was trained with the DLA's tokens in the place of T5's, and with the",
            "reference's tokens behind the picture's. diffusers alone has neither: with T5's `prompt_embeds` it",
            "generates images, but not of the subject. Pass the DLA's tokens as `prompt_embeds`, or use mllmsubj.",
            "",
        )
    yield from (
        "```sh",
        'mllmsubj generate --checkpoint=DIR_OF_THE_CHECKPOINT --reference=cat.jpg --prompt="…"',
        "```",
        "",
    )


def _settings(experiment: Experiment) -> Iterator[str]:
    train, reference, sampling = experiment.train, experiment.reference, experiment.sampling
    lora, dla = experiment.model.lora, experiment.model.dla
    stages = [f"{stage.steps:,} steps, rates {dict(stage.learning_rates)}" for stage in (train.stage1, train.stage2)]
    rows = {
        "LoRA": "none" if lora is None else f"rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}",
        "DLA": f"{dla.num_pooled} states of {dla.num_states}, width {dla.width}, "
        + ("one for all tokens" if dla.shared else "one for text, one for images"),
        "stage 1 (MLLM alone)": stages[0],
        "stage 2 (MLLM and VAE)": stages[1],
        "batch size": train.batch_size,
        "prompt template": f"`<|im_start|>system {experiment.prompt.system}<|im_end|> <|im_start|>user REFERENCES "
        "PROMPT<|im_end|> <|im_start|>assistant`",
        "references": f"long side {reference.long_side} pixels, at most {reference.max_references}",
        "picture": f"{sampling.height} × {sampling.width} pixels",
        "steps": f"{sampling.steps} ({sampling.stepper})",
        "tau1, tau2": f"{sampling.tau1:g}, {sampling.tau2:g}; last stage {sampling.last_stage}",
        "guidance": f"{sampling.guidance:g} distilled, {train.guidance:g} in training",
        "classifier-free guidance": f"text {sampling.text_guidance:g}, reference {sampling.reference_guidance:g}",
    }
    yield from ("## Settings", "", "| setting | value |", "|---|---|")
    yield from (f"| {name} | {_cell(value)} |" for name, value in rows.items())
    yield ""


def _metrics(metrics: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Metrics", "")
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float | str)}
    if not numbers:
        yield from ("Not measured yet: `mllmsubj evaluate` measures them.", "")
        return
    yield from ("| metric | value |", "|---|---|")
    for name, value in numbers.items():
        yield f"| {_cell(name)} | {_cell(f'{value:.4g}' if isinstance(value, float) else value)} |"
    yield ""


def _licenses(flux: BaseModel | None, mllm: BaseModel | None) -> Iterator[str]:
    yield from ("## Licenses", "", "| weights | license |", "|---|---|")
    if flux is None and mllm is None:
        yield "| these, trained from weights of no published size | as those weights' |"
    for base in (flux, mllm, CLIP if flux else None):
        if base is not None:
            yield f"| {base.name} | {base.terms} |"
    yield from ("| the code of mllmsubj | Apache-2.0 |", "")
    if flux is not None or mllm is not None:
        yield from (
            "Base models are identified by their sizes: check that these are the ones that it was trained on.",
            "",
        )


def _cell(value: object) -> str:
    """Escapes a value for a cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")
