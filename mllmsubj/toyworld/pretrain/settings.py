"""Pretraining settings in a config; configs/tiny.py contains the values."""

from dataclasses import dataclass

from mllmsubj.config.load import typed
from mllmsubj.config.schema import Experiment
from mllmsubj.config.train import Optimizer
from mllmsubj.errors import UserError
from mllmsubj.toyworld.probe.network import ProbeConfig


@dataclass(frozen=True)
class ComponentConfig:
    """Training settings of one component."""

    steps: int
    batch_size: int
    optimizer: Optimizer
    learning_rate: float
    warmup_steps: int
    decay_steps: int
    """Number of last steps, over which the learning rate decays to 0."""
    ema_decay: float
    eval_every_steps: int
    """Training steps between evaluations, which also run after the last step."""
    num_eval_examples: int
    """Number of held-out examples of an evaluation."""
    start_from: str
    """Folder with a component of that name to start from, "tiny" for the shipped one, or empty: random parameters."""


@dataclass(frozen=True)
class VAEPretrainConfig(ComponentConfig):
    """Reconstruction of random crops: convolutions learn the same from a quarter of a picture."""

    crop_size: int
    """Side of a crop in pixels."""
    gradient_weight: float
    """Loss weight of the error in differences between neighboring pixels, which keeps edges sharp."""
    kl_weight: float
    """Loss weight of the Kullback-Leibler divergence from N(0, 1), in nats per latent value."""


@dataclass(frozen=True)
class MLLMPretrainConfig(ComponentConfig):
    """Visual question answering (VQA) and descriptions."""

    tokens: int
    """Length of a conversation; longer ones are truncated."""
    task_shares: tuple[float, ...]
    """Shares of conversations that describe the picture, describe a prompt's result, and answer questions; sum to 1."""
    questions: int
    """Number of questions in a conversation of the last kind."""
    vision_only_share: float
    """Share of vision-only rows, which train the vision tower alone, at a fraction of the cost."""
    auxiliary_weight: float
    """Loss weight of the auxiliary head on the vision tower's tokens, whose cross entropy is a mean over attributes.

    The weight of the answers' cross entropy, a mean over their tokens, is 1.
    """

    def __post_init__(self) -> None:
        """Raises UserError if `vision_only_share` is out of range."""
        if not 0.0 <= self.vision_only_share < 1.0:
            raise UserError(
                f"config key pretrain.mllm.vision_only_share is {self.vision_only_share}; it must be at least 0 and "
                f"below 1"
            )


@dataclass(frozen=True)
class DiTPretrainConfig(ComponentConfig):
    """Text to image; the distribution of the time t is the experiment's."""

    pictures: int
    """Number of pictures that are rendered and cached as latents, 16 KB each at 128 pixels, two of each subject.

    The first one is the target, the second one its reference view.
    """
    pose_randomness: float
    """Pose randomness of targets: probability that an attribute of the pose is random instead of canonical."""
    subject_weight: float
    """Loss weight of tokens that overlap the subject; that of others is 1."""
    drop_subject_with_reference_view: float
    """Share of captions in rows with a reference view that omit the subject, half of them except for its shape."""
    drop_all: float
    """Share of empty captions."""
    drop_subject: float
    """Share of captions in rows without a reference view that omit the subject except for its shape."""
    drop_scene: float
    """Mean share of the scene's attributes that a caption omits.

    Each caption's own share is uniform between 0 and twice that, at most 1.
    """
    eval_sampling_steps: int
    """Sampling steps of pictures generated in an evaluation."""
    eval_guidance: float
    """Classifier-free guidance scale of these pictures; 1 is no guidance."""

    def __post_init__(self) -> None:
        """Raises UserError if a share is outside [0, 1]."""
        for name in ("pose_randomness", "drop_subject_with_reference_view", "drop_all", "drop_subject", "drop_scene"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"config key pretrain.dit.{name} is {getattr(self, name)}; it must be from 0 to 1")


@dataclass(frozen=True)
class DLAPretrainConfig(ComponentConfig):
    """Distillation of captions into the DLA's output for prompts about references and for texts without a reference.

    Attributes that the caption of a text omits are left to the transformer.
    """

    examples: int
    """Number of examples, whose targets are cached as latents."""
    relations: int
    """Number of rows of each relational example (`Prompt.is_relational`); any other example has one row.

    Requests that depend on the reference's own colors and pose are learned last.
    """
    tokens: int
    """Length of a text without a reference, padding included; longer texts raise an error.

    Prompts about references have data.prompt_tokens.
    """


@dataclass(frozen=True)
class ProbePretrainConfig(ComponentConfig):
    """Training pictures are blurred by up to weights of 1, 2, 1, and vary in brightness and noise, all at random."""

    network: ProbeConfig
    brightness: float
    """Largest relative change of brightness."""
    noise: float
    """Largest standard deviation of the noise, for pictures in [−1, 1]."""
    jitter: float
    """Largest jitter of the local glimpse's position, in subject sizes, and relative jitter of its size."""


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of all components, in the order in which they build on each other."""

    vae: VAEPretrainConfig
    probe: ProbePretrainConfig
    mllm: MLLMPretrainConfig
    dit: DiTPretrainConfig
    dla: DLAPretrainConfig

    @classmethod
    def of(cls, experiment: Experiment) -> "PretrainConfig":
        """Returns the settings in the section `pretrain` of a config.

        Raises UserError if the section is missing, or if keys or types differ from these.
        """
        if experiment.pretrain is None:
            raise UserError("the config has no section pretrain; use --config=tiny")
        return typed(cls, experiment.pretrain, "config.pretrain")

    def __post_init__(self) -> None:
        """Raises UserError if a count is below 1."""
        for name, component in vars(self).items():
            for key in ("steps", "batch_size", "num_eval_examples", "pictures", "examples", "relations"):
                if (value := getattr(component, key, 1)) < 1:
                    raise UserError(f"config key pretrain.{name}.{key} is {value}; it must be at least 1")
