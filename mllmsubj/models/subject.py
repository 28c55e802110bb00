"""The complete model: `condition` (`encode`, then `aggregate`) runs once, `velocity` runs at every step.

Parameters are one dict with a subtree per component: mllm, dla, vae, clip, transformer. Training and sampling use the
same code.
"""

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mllmsubj.models.clip import CLIPTextConfig, CLIPTextModel
from mllmsubj.models.dit import FluxConfig, FluxTransformer
from mllmsubj.models.dla import DLAConfig, DualLayerAggregator
from mllmsubj.models.layers import Compute, init_params
from mllmsubj.models.lora import LoRAConfig, is_lora
from mllmsubj.models.mllm import InternVL, InternVLConfig
from mllmsubj.models.modulation import Modulation
from mllmsubj.models.vae import AutoencoderKL, VAEConfig
from mllmsubj.ops.patchify import PATCH, image_ids, pack, reference_ids, token_grid, unpack
from mllmsubj.parallel.sharding import sharded_shapes
from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import ActiveTokens, Array, Float, Leaf, Params


@dataclass(frozen=True)
class SubjectConfig:
    """Sizes of every component."""

    mllm: InternVLConfig
    dla: DLAConfig
    vae: VAEConfig
    clip: CLIPTextConfig
    transformer: FluxConfig
    lora: LoRAConfig | None
    frozen_dtype: Literal["auto", "int8"] = "auto"
    """Storage of frozen projections: "auto" is the compute dtype, "int8" is 8 bits (models/quantize.py)."""


@dataclass(frozen=True)
class Layout:
    """Positions of a prompt's tokens in the MLLM's sequence; the same for every row of a batch."""

    text: tuple[int, int]
    """Start and stop of the prompt and everything after it, padding included."""
    images: tuple[tuple[int, int], ...]
    """Start and stop of each reference's visual tokens."""


@flax.struct.dataclass
class SubjectInputs:
    """Inputs of the frozen encoders for one batch; every array has a fixed shape."""

    input_ids: Leaf
    """[b, s] int32."""
    attention_mask: Leaf
    """[b, s], False at padding."""
    null_ids: Leaf
    """[1, z] int32: the template with an empty prompt and no reference."""
    clip_ids: Leaf
    """[b, u] int32."""
    pixel_values: Leaf
    """[b · references, height, width, 3]: one tile per row and reference, row-major, normalized for the MLLM."""
    references: tuple[Leaf, ...]
    """The same references for the VAE, each [b, height, width, 3] in [-1, 1], sides multiples of 16; may be empty."""
    layout: Layout = flax.struct.field(pytree_node=False)
    null_text: tuple[int, int] = flax.struct.field(pytree_node=False)
    """Start and stop of the text in `null_ids`."""
    reference_mask: Leaf = None
    """[b, n], False at padding of a reference's array; None means that there is no padding."""


@flax.struct.dataclass
class Features:
    """Outputs of the frozen encoders; constant during training, so they can be cached."""

    text: Leaf
    """[l, b, s, d]: hidden states of the prompt's tokens from every layer."""
    text_mask: Leaf
    """[b, s], False at padding."""
    image: Leaf
    """[l, b, m, d]: hidden states of the references' visual tokens from every layer."""
    null: Leaf
    """[l, 1, z, d]: as `text`, for the empty prompt."""
    pooled: Leaf
    """[b, p]: CLIP's pooled prompt vector."""
    references: Leaf
    """[b, n, c]: packed VAE latents of all references, concatenated."""
    reference_mask: Leaf
    """[b, n], as in `SubjectInputs`, or None."""
    reference_sizes: tuple[tuple[int, int], ...] = flax.struct.field(pytree_node=False)
    """Token rows and columns of each reference."""


@flax.struct.dataclass
class Condition:
    """Inputs of `velocity` besides latents and time; computed once per sample."""

    text: Leaf
    """[b, s, e]."""
    image: Leaf
    """[b, m, e]."""
    null: Leaf
    """[b, z, e]."""
    reference: Leaf
    """[b, n, c]."""
    pooled: Leaf
    """[b, p]."""
    guidance: Leaf
    """[b], the distilled guidance scale: 1.0 in training, 2.5 in the paper's sampling."""
    text_mask: Leaf
    """[b, s], False at padding and where a row's condition is dropped, as are the masks below; None masks nothing."""
    image_mask: Leaf = None
    """[b, m]."""
    null_mask: Leaf = None
    """[b, z]."""
    reference_mask: Leaf = None
    """[b, n]."""
    reference_sizes: tuple[tuple[int, int], ...] = flax.struct.field(pytree_node=False, default=())


Latents = tuple[Float[Array, "b _ c"], Float[Array, "b _ c"]]


@dataclass(frozen=True)
class SubjectModel:
    """Pure functions of (params, arrays) over the five components."""

    config: SubjectConfig
    compute: Compute

    @property
    def stacked(self) -> "SubjectModel":
        """The same model with layers stacked as in checkpoints (one array per parameter), whatever `scan_layers` is."""
        return replace(self, compute=replace(self.compute, scan_layers=True))

    @property
    def mllm(self) -> InternVL:
        """The frozen multimodal language model."""
        return InternVL(self.config.mllm, self.compute)

    @property
    def dla(self) -> DualLayerAggregator:
        """The trained Dual Layer Aggregator."""
        return DualLayerAggregator(self.config.dla, self.compute)

    @property
    def vae(self) -> AutoencoderKL:
        """The frozen VAE."""
        return AutoencoderKL(self.config.vae, self.compute)

    @property
    def clip(self) -> CLIPTextModel:
        """The frozen CLIP text encoder."""
        return CLIPTextModel(self.config.clip, self.compute)

    @property
    def transformer(self) -> FluxTransformer:
        """The FLUX transformer, frozen but for its low-rank adapters."""
        return FluxTransformer(self.config.transformer, self.compute, self.config.lora)

    def init(self, key: Array) -> Params:
        """Returns random parameters of every component."""
        parts = {name: getattr(self, name) for name in ("mllm", "dla", "vae", "clip", "transformer")}
        return {name: init_params(part, jax.random.fold_in(key, i)) for i, (name, part) in enumerate(parts.items())}

    def abstract_params(self, mesh: Mesh | None = None) -> Params:
        """Returns shapes and dtypes without allocating: float32 if trained, the compute dtype if frozen.

        With a mesh, the shapes also have shardings.
        """
        shapes = unflatten(dict(_stored_leaves(self)))
        return shapes if mesh is None else sharded_shapes(shapes, mesh)

    def encode(self, params: Params, inputs: SubjectInputs) -> Features:
        """Runs the frozen encoders: MLLM on prompt and references together, CLIP on the prompt, VAE on references."""
        states = self._call("mllm", params, inputs.input_ids, inputs.attention_mask, inputs.pixel_values)
        null = self._call("mllm", params, inputs.null_ids, jnp.ones_like(inputs.null_ids, bool), None)
        text, layout = slice(*inputs.layout.text), inputs.layout
        return Features(
            text=states[:, :, text],
            text_mask=inputs.attention_mask[:, text],
            image=jnp.concatenate([states[:, :, slice(*span)] for span in layout.images], axis=2),
            null=null[:, :, slice(*inputs.null_text)],
            pooled=self._call("clip", params, inputs.clip_ids),
            references=self.concatenate_references(
                self.encode_images(params, inputs.references), len(inputs.input_ids)
            ),
            reference_mask=inputs.reference_mask,
            reference_sizes=tuple(token_grid(*picture.shape[1:3]) for picture in inputs.references),
        )

    def aggregate(self, params: Params, features: Features, guidance: Float[Array, " b"]) -> Condition:
        """Runs the trained DLA on the states of all layers, for the prompt and for the empty prompt."""
        text, image = self._call("dla", params, features.text, features.image, features.text_mask)
        null = self._call("dla", params, features.null, method="aggregate_text")
        return Condition(
            text=text,
            image=image,
            null=jnp.broadcast_to(null, (len(text), *null.shape[1:])),
            reference=features.references,
            pooled=features.pooled,
            guidance=guidance,
            text_mask=features.text_mask,
            reference_mask=features.reference_mask,
            reference_sizes=features.reference_sizes,
        )

    def condition(self, params: Params, inputs: SubjectInputs, guidance: Float[Array, " b"]) -> Condition:
        """Runs `encode`, then `aggregate`."""
        return self.aggregate(params, self.encode(params, inputs), guidance)

    def velocity(
        self,
        params: Params,
        grid: tuple[int, int],
        latents: Float[Array, "b n c"],
        t: Float[Array, " b"] | Modulation,
        condition: Condition,
        active_tokens: ActiveTokens,
    ) -> Float[Array, "b n c"]:
        """Returns the velocity of noisy tokens on a `grid` of rows × columns.

        `t` is in [0, 1], or one step of the modulation from `prepare`. The context is [null; text; image], the image
        stream [noisy; references]; groups of tokens that are off in `active_tokens` are left out. With `params` and
        `grid` bound, this is a `typing.Velocity`.
        """
        context = [part for part in ("null", "text", "image") if getattr(active_tokens, part)]
        states = jnp.concatenate([getattr(condition, part) for part in context], axis=1)
        parts = [(getattr(condition, part), getattr(condition, f"{part}_mask")) for part in context]
        parts.append((latents, None))
        tokens: Array = latents
        ids: Array = image_ids(*grid)
        if active_tokens.reference:
            parts.append((condition.reference, condition.reference_mask))
            tokens = jnp.concatenate([latents, condition.reference.astype(latents.dtype)], axis=1)
            ids = np.concatenate([ids, reference_ids(grid, list(condition.reference_sizes))])
        prepared = isinstance(t, Modulation)
        return self._call(
            "transformer",
            params,
            tokens,
            states,
            condition.pooled,
            None if prepared else t,
            jnp.asarray(ids),
            jnp.zeros((states.shape[1], 3)),
            condition.guidance,
            mask=_joined(parts),
            output_tokens=latents.shape[1],
            modulation=t if prepared else None,
        )

    def prepare(self, params: Params, times: Float[Array, "steps b"], condition: Condition) -> Modulation:
        """Returns the transformer's modulation for many steps at once, with a leading axis of steps."""
        return self._call("transformer", params, times, condition.pooled, condition.guidance, method="modulate")

    def decode(
        self, params: Params, latents: Float[Array, "b n c"], grid: tuple[int, int]
    ) -> Float[Array, "b height width 3"]:
        """Returns images, about in [-1, 1] and not clipped, from packed latents."""
        spatial = unpack(latents, *(side * PATCH for side in grid))
        return self._call("vae", params, self.vae.from_latents(spatial), method="decode")

    def encode_images(self, params: Params, pictures: tuple[Array, ...]) -> list[Latents]:
        """Encodes each image; those of one shape in a loop, since compiling the VAE takes half a minute per copy."""
        encode = partial(self.encode_image, params)
        if self.compute.loops and len({picture.shape for picture in pictures}) == 1:
            return list(zip(*jax.lax.map(encode, jnp.stack(pictures)), strict=True))
        return [encode(picture) for picture in pictures]

    def concatenate_references(self, references: list[Latents], rows: int) -> Float[Array, "b n c"]:
        """Concatenates the latent means, which are deterministic; the result is [rows, 0, c] without references."""
        none = jnp.zeros((rows, 0, self.config.transformer.in_channels), self.compute.dtype)
        return jnp.concatenate([none, *(mean for mean, _ in references)], axis=1)

    def encode_image(self, params: Params, picture: Float[Array, "b height width 3"]) -> Latents:
        """Returns the latent mean and standard deviation of the VAE's posterior, packed and scaled."""
        mean, logvar = self._call("vae", params, picture, method="encode")
        return pack(self.vae.to_latents(mean)), pack(jnp.exp(0.5 * logvar) * self.config.vae.scaling_factor)

    def _call(self, part: str, params: Params, *args: Any, **kwargs: Any) -> Any:
        """Applies one component with its subtree of the parameters."""
        return getattr(self, part).apply({"params": params[part]}, *args, **kwargs)


def _joined(parts: list[tuple[Array, Array | None]]) -> Array | None:
    """Returns one mask over the tokens of all parts, or None if no part is masked."""
    if all(mask is None for _, mask in parts):
        return None
    masks = [jnp.ones(tokens.shape[:2], bool) if mask is None else mask for tokens, mask in parts]
    return jnp.concatenate(masks, axis=1)


@cache
def _stored_leaves(model: SubjectModel) -> tuple[tuple[str, jax.ShapeDtypeStruct], ...]:
    """Returns the path and shape of every parameter; cached, since tracing the initialization takes seconds."""

    def stored(path: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float32 if is_trained(path) else model.compute.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return tuple((path, stored(path, leaf)) for path, leaf in flatten(shapes).items())


def is_trained(path: str) -> bool:
    """Returns whether a parameter is trained: those of the DLA and the adapters are, all others are frozen."""
    return path.startswith("dla/") or is_lora(path)
