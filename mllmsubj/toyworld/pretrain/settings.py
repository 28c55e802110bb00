"""What a config says of pretraining; see configs/tiny.py for the values."""

from dataclasses import dataclass

from mllmsubj.config.load import typed
from mllmsubj.config.schema import Experiment
from mllmsubj.config.train import Optimizer
from mllmsubj.errors import UserError
from mllmsubj.toyworld.probe.network import ProbeConfig


@dataclass(frozen=True)
class PartConfig:
    """How one part is trained."""

    steps: int
    batch_size: int
    optimizer: Optimizer
    learning_rate: float
    warmup_steps: int
    decay_steps: int
    """Last steps, over which the learning rate falls to 0."""
    ema_decay: float
    judge_every_steps: int
    """It is judged at the end, too."""
    judged: int
    """Held-out examples that it is judged by."""
    start_from: str
    """Folder of a part of that name to go on from, "tiny" for the one that is shipped, or empty: from nothing."""


@dataclass(frozen=True)
class VAEPartConfig(PartConfig):
    """Reconstruction of random windows: convolutions learn the same from a quarter of a picture."""

    window: int
    """Pixels of a window's side."""
    gradient_weight: float
    """Of the error of differences between neighbouring pixels, which keeps edges sharp."""
    kl_weight: float
    """Of the Kullback-Leibler divergence from N(0, 1), nats per number of the latents."""


@dataclass(frozen=True)
class MLLMPartConfig(PartConfig):
    """Talks about pictures."""

    tokens: int
    """Length of a talk; what is longer is cut off."""
    shares: tuple[float, ...]
    """Of talks that describe the picture, that say what a prompt makes of it, and that answer questions; sum to 1."""
    questions: int
    """In a talk that answers some."""
    silent: float
    """Share of the rows that do not talk: the eye alone learns from them, at a fraction of the cost."""
    seen_weight: float
    """Of the cross entropy, mean over attributes, of reading a picture off the tokens that its eye gives the decoder,
    where that of the answers, mean over their tokens, is 1."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.silent < 1.0:
            raise UserError(f"config key pretrain.mllm.silent is {self.silent}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class DiTPartConfig(PartConfig):
    """Text to image; the time's density is the experiment's."""

    pictures: int
    """That are rendered and kept as latents, 16 KB each at 128 pixels, two of every subject: the first is learnt, again
    and again, the second is what stands beside it."""
    unusual: float
    """Chance of each attribute of the pose of what is learnt to be any, not the usual one."""
    subject_weight: float
    """Of the loss of a token about the subject, where that of the others is 1."""
    drop_beside: float
    """Share of captions of rows with a second view that leave the subject to that view, with or without its shape."""
    drop_all: float
    """Share of captions that say nothing."""
    drop_subject: float
    """Share of captions that say nothing of the subject but its shape."""
    drop_scene: float
    """Mean share of the scene's attributes that a caption leaves out: its own lies anywhere from 0 to twice that, and
    never above 1."""
    judge_steps: int
    """Of the sampler, for drawings that are judged."""
    judge_guidance: float
    """Of these drawings: how far from what is drawn where nothing is said; 1 is none."""

    def __post_init__(self) -> None:
        for name in ("unusual", "drop_beside", "drop_all", "drop_subject", "drop_scene"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"config key pretrain.dit.{name} is {getattr(self, name)}; it must be from 0 to 1")


@dataclass(frozen=True)
class DLAPartConfig(PartConfig):
    """Prompts about references, and texts alone, that are to say what captions say; what captions of texts leave out is
    the transformer's."""

    examples: int
    """That it learns from, again and again; latents of their targets are kept, as the transformer's pictures' are."""
    relations: int
    """How often an example comes that `Prompt.changes_what_is_seen`, where any other comes once: what a prompt makes of
    the reference's own colours and pose is learnt last."""
    tokens: int
    """Length of a text alone, filled up; a longer one is an error. Of prompts: data.prompt_tokens."""


@dataclass(frozen=True)
class ProbePartConfig(PartConfig):
    """Pictures are softened, by neighbours up to weights of 1, 2, 1, lit otherwise and made noisy, each by chance."""

    network: ProbeConfig
    light: float
    """Largest change of light, as a share of it."""
    grain: float
    """Largest deviation of the noise, of pictures in [-1, 1]."""
    off: float
    """Largest error of the place and size of what is looked at closely, in units of the subject's size."""


@dataclass(frozen=True)
class PretrainConfig:
    """The parts, in the order in which they build on each other."""

    vae: VAEPartConfig
    probe: ProbePartConfig
    mllm: MLLMPartConfig
    dit: DiTPartConfig
    dla: DLAPartConfig

    @classmethod
    def of(cls, experiment: Experiment) -> "PretrainConfig":
        """A config's section `pretrain`; raises UserError if it has none, or another key or type than these."""
        if experiment.pretrain is None:
            raise UserError("the config has no section pretrain; use --config=tiny")
        return typed(cls, experiment.pretrain, "config.pretrain")

    def __post_init__(self) -> None:
        for name, part in vars(self).items():
            for key in ("steps", "batch_size", "judged", "pictures", "examples", "relations"):
                if (value := getattr(part, key, 1)) < 1:
                    raise UserError(f"config key pretrain.{name}.{key} is {value}; it must be at least 1")
