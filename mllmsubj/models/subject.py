"""The whole model: `encode` (frozen encoders) → `aggregate` (trained) = `condition`, then `velocity` at every step.

Parameters are one dict with a subtree a part: mllm, dla, vae, clip, transformer. Training and sampling share
everything here; there is no second copy for inference.
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
    """Sizes of every part."""

    mllm: InternVLConfig
    dla: DLAConfig
    vae: VAEConfig
    clip: CLIPTextConfig
    transformer: FluxConfig
    lora: LoRAConfig | None
    frozen_dtype: Literal["auto", "int8"] = "auto"
    """What frozen projections are held in: the compute dtype, or 8 bits (models/quantize.py)."""


@dataclass(frozen=True)
class Layout:
    """Where a prompt's tokens lie in the MLLM's sequence; the same for every row of a batch."""

    text: tuple[int, int]
    """Start and stop of the prompt and what follows it, padding included."""
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
    """[b · references, height, width, 3]: a tile per row and reference, row-major, normalised as the MLLM wants it."""
    references: tuple[Leaf, ...]
    """The same references for the VAE, each [b, height, width, 3] in [-1, 1], sides multiples of 16; perhaps none."""
    layout: Layout = flax.struct.field(pytree_node=False)
    null_text: tuple[int, int] = flax.struct.field(pytree_node=False)
    """Start and stop of the text in `null_ids`."""
    reference_mask: Leaf = None
    """[b, n], False at tokens that only fill a reference's array; None: all are there."""


@flax.struct.dataclass
class Features:
    """Outputs of the frozen encoders; constant in training, so that they can be cached."""

    text: Leaf
    """[l, b, s, d]: every layer's state of the prompt's tokens."""
    text_mask: Leaf
    """[b, s], False at padding."""
    image: Leaf
    """[l, b, m, d]: every layer's state of the references' visual tokens."""
    null: Leaf
    """[l, 1, z, d]: as `text`, of the empty prompt."""
    pooled: Leaf
    """[b, p]."""
    references: Leaf
    """[b, n, c]: packed VAE latents of all references, one behind the other."""
    reference_mask: Leaf
    """[b, n] or None."""
    reference_sizes: tuple[tuple[int, int], ...] = flax.struct.field(pytree_node=False)
    """Rows and columns of tokens of each reference."""


@flax.struct.dataclass
class Condition:
    """All that `velocity` reads besides latents and time; made once per sample."""

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
    """[b], the distilled scale: 1.0 in training, 2.5 in the paper's sampling."""
    text_mask: Leaf
    """[b, s], False at padding and where a row's condition is dropped; so the masks below. None: all are there."""
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
    """Pure functions of (params, arrays) over the five parts."""

    config: SubjectConfig
    compute: Compute

    @property
    def stacked(self) -> "SubjectModel":
        """The same with its parameters as checkpoints and parts hold them: layers in one array, however it computes."""
        return replace(self, compute=replace(self.compute, scan_layers=True))

    @property
    def mllm(self) -> InternVL:
        return InternVL(self.config.mllm, self.compute)

    @property
    def dla(self) -> DualLayerAggregator:
        return DualLayerAggregator(self.config.dla, self.compute)

    @property
    def vae(self) -> AutoencoderKL:
        return AutoencoderKL(self.config.vae, self.compute)

    @property
    def clip(self) -> CLIPTextModel:
        return CLIPTextModel(self.config.clip, self.compute)

    @property
    def transformer(self) -> FluxTransformer:
        return FluxTransformer(self.config.transformer, self.compute, self.config.lora)

    def init(self, key: Array) -> Params:
        """Random parameters of every part."""
        parts = {name: getattr(self, name) for name in ("mllm", "dla", "vae", "clip", "transformer")}
        return {name: init_params(part, jax.random.fold_in(key, i)) for i, (name, part) in enumerate(parts.items())}

    def abstract_params(self, mesh: Mesh | None = None) -> Params:
        """Shapes and dtypes without allocating: trained parameters in float32, frozen ones in the compute dtype.

        With a mesh, also how they lie on it.
        """
        shapes = unflatten(dict(_stored_leaves(self)))
        return shapes if mesh is None else sharded_shapes(shapes, mesh)

    def encode(self, params: Params, inputs: SubjectInputs) -> Features:
        """The frozen encoders: MLLM over prompt and references together, CLIP over the prompt, VAE over references."""
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
        """The trained part: DLA over all layers' states, for the prompt and for the empty one."""
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
        """`aggregate` after `encode`."""
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
        """Velocity of noisy tokens on a `grid` of rows × columns; `t` in [0, 1], or what `prepare` made of it.

        Context is [null; text; image] and the image stream [noisy; references], of which only what `active_tokens`
        names is there. With `params` and `grid` bound it is what `diffusion` calls a velocity.
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
        """All that the transformer makes of time alone, for many steps at once."""
        return self._call("transformer", params, times, condition.pooled, condition.guidance, method="modulate")

    def decode(
        self, params: Params, latents: Float[Array, "b n c"], grid: tuple[int, int]
    ) -> Float[Array, "b height width 3"]:
        """Pictures in [-1, 1] from packed latents."""
        spatial = unpack(latents, *(side * PATCH for side in grid))
        return self._call("vae", params, self.vae.from_latents(spatial), method="decode")

    def encode_images(self, params: Params, pictures: tuple[Array, ...]) -> list[Latents]:
        """`encode_image` of each; images of one shape in a loop, since compiling the VAE takes half a minute."""
        encode = partial(self.encode_image, params)
        if self.compute.loops and len({picture.shape for picture in pictures}) == 1:
            return list(zip(*jax.lax.map(encode, jnp.stack(pictures)), strict=True))
        return [encode(picture) for picture in pictures]

    def concatenate_references(self, references: list[Latents], rows: int) -> Float[Array, "b n c"]:
        """The means: a reference always reads the same. Of no reference, `rows` without tokens."""
        none = jnp.zeros((rows, 0, self.config.transformer.in_channels), self.compute.dtype)
        return jnp.concatenate([none, *(mean for mean, _ in references)], axis=1)

    def encode_image(self, params: Params, picture: Float[Array, "b height width 3"]) -> Latents:
        """Packed mean and deviation of the VAE's posterior."""
        mean, logvar = self._call("vae", params, picture, method="encode")
        return pack(self.vae.to_latents(mean)), pack(jnp.exp(0.5 * logvar) * self.config.vae.scaling_factor)

    def _call(self, part: str, params: Params, *args: Any, **kwargs: Any) -> Any:
        """One part with its own subtree of the parameters."""
        return getattr(self, part).apply({"params": params[part]}, *args, **kwargs)


def _joined(parts: list[tuple[Array, Array | None]]) -> Array | None:
    """One mask over the tokens of all parts, or None if nothing is masked anywhere."""
    if all(mask is None for _, mask in parts):
        return None
    masks = [jnp.ones(tokens.shape[:2], bool) if mask is None else mask for tokens, mask in parts]
    return jnp.concatenate(masks, axis=1)


@cache
def _stored_leaves(model: SubjectModel) -> tuple[tuple[str, jax.ShapeDtypeStruct], ...]:
    """Once a model: tracing its initialisation takes seconds, and loading, checking and training all ask."""

    def stored(path: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float32 if is_trained(path) else model.compute.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return tuple((path, stored(path, leaf)) for path, leaf in flatten(shapes).items())


def is_trained(path: str) -> bool:
    """Whether training changes a parameter: the DLA's and the adapters'; all others stay frozen."""
    return path.startswith("dla/") or is_lora(path)
