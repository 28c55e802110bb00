"""True classifier-free guidance as a wrapper around a velocity: same signature in, same signature out."""

from mllmsubj.diffusion.stages import NOTHING, VAE
from mllmsubj.typing import ActiveTokens, Array, Float, PyTree, Velocity


def evaluated(active_tokens: ActiveTokens) -> tuple[ActiveTokens, ...]:
    """What `guided` evaluates a velocity with: what the stage sees, nothing, and, of the two it sees, the reference."""
    return (active_tokens, NOTHING, VAE) if active_tokens.reference and active_tokens.mllm else (active_tokens, NOTHING)


def guided(velocity: Velocity, text_scale: Array | float, reference_scale: Array | float) -> Velocity:
    """v∅ + s_r · (v_r − v∅) + s_t · (v − v_r): the MLLM's and the VAE's pull on the picture, scaled apart.

    v attends to what the stage does, v_r to the VAE's reference tokens alone, v∅ to nothing. Where a stage has
    only one of the two, the other term is zero and its evaluation is left out. Scales of 1 give v itself.
    Source: InstructPix2Pix (arXiv 2211.09800), Eq. 3, with the reference as the picture.
    """

    def wrapped(latents: Float[Array, "b n d"], t: PyTree, condition: PyTree, active_tokens: ActiveTokens) -> Array:
        full, null, *both = (velocity(latents, t, condition, each) for each in evaluated(active_tokens))
        if both:
            return null + reference_scale * (both[0] - null) + text_scale * (full - both[0])
        return null + (reference_scale if active_tokens.reference else text_scale) * (full - null)

    return wrapped
