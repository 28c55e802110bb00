"""Classifier-free guidance (CFG) as a wrapper around a velocity function, with the same signature."""

from mllmsubj.diffusion.stages import NOTHING, VAE
from mllmsubj.typing import ActiveTokens, Array, Float, PyTree, Velocity


def evaluated(active_tokens: ActiveTokens) -> tuple[ActiveTokens, ...]:
    """Returns the tokens of each evaluation in `guided`: the stage's, none, and, if it has both, the reference's."""
    return (active_tokens, NOTHING, VAE) if active_tokens.reference and active_tokens.mllm else (active_tokens, NOTHING)


def guided(velocity: Velocity, text_scale: Array | float, reference_scale: Array | float) -> Velocity:
    """Wraps a velocity with CFG, v∅ + s_r · (v_r − v∅) + s_t · (v − v_r), with a scale each for MLLM and VAE.

    v is conditioned on the stage's tokens, v_r on the VAE's reference tokens alone, v∅ on none. If a stage has only
    MLLM or only reference tokens, the other term is zero and is not evaluated. Scales of 1 give v.
    Source: InstructPix2Pix (arXiv 2211.09800), Eq. 3, with the reference as the image.
    """

    def wrapped(latents: Float[Array, "b n d"], t: PyTree, condition: PyTree, active_tokens: ActiveTokens) -> Array:
        full, null, *both = (velocity(latents, t, condition, each) for each in evaluated(active_tokens))
        if both:
            return null + reference_scale * (both[0] - null) + text_scale * (full - both[0])
        return null + (reference_scale if active_tokens.reference else text_scale) * (full - null)

    return wrapped
