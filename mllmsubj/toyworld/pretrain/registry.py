"""Factory of the components, by name."""

from pathlib import Path

from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.checkpoints.components import COMPONENTS
from mllmsubj.config.schema import Experiment
from mllmsubj.errors import UserError, nearest
from mllmsubj.models.subject import SubjectModel
from mllmsubj.toyworld.pretrain.component import Component
from mllmsubj.toyworld.pretrain.dit import DiTComponent
from mllmsubj.toyworld.pretrain.dla import DLAComponent
from mllmsubj.toyworld.pretrain.mllm import MLLMComponent
from mllmsubj.toyworld.pretrain.probe import ProbeComponent
from mllmsubj.toyworld.pretrain.settings import PretrainConfig
from mllmsubj.toyworld.pretrain.vae import VAEComponent
from mllmsubj.train.setup import make_prompt_encoder


def make_component(name: str, experiment: Experiment, workdir: Path) -> Component:
    """Returns the component called `name`.

    `workdir`: folder that may contain components that it builds on. Raises UserError for an unknown name.
    """
    settings, size = PretrainConfig.of(experiment), experiment.sampling.height
    model = SubjectModel(experiment.model, experiment.compute.resolve())
    encoder = make_prompt_encoder(experiment, checkpoint.TINY)
    match name:
        case "vae":
            return VAEComponent(model, settings.vae, size)
        case "probe":
            return ProbeComponent(settings.probe, size)
        case "mllm":
            tile = experiment.model.mllm.vision.image_size
            return MLLMComponent(model, settings.mllm, tile, encoder, experiment.reference)
        case "dit" | "dla":
            dit = DiTComponent(model, settings.dit, size, encoder, experiment.train.time, experiment.shift, workdir)
            return dit if name == "dit" else DLAComponent(settings.dla, dit, experiment.data, experiment.reference)
    raise UserError(f"unknown component {name!r}{nearest(name, COMPONENTS)}; there are {', '.join(COMPONENTS)}")
