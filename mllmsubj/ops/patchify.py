"""Conversion of latents to tokens and back, and position ids of image and reference tokens."""

import numpy as np
from einops import rearrange

from mllmsubj.typing import Array, Float

PATCH = 2
"""Side of a token in latent pixels: FLUX packs 2 × 2 of them into one token."""

TOKEN_PIXELS = 8 * PATCH
"""Side of a token in pixels, including the VAE's factor of 8; sides of images are multiples of it."""


def token_grid(height: int, width: int) -> tuple[int, int]:
    """Returns the token rows and columns of an image of `height` × `width` pixels."""
    return height // TOKEN_PIXELS, width // TOKEN_PIXELS


def pack(latents: Float[Array, "b height width c"]) -> Float[Array, "b n d"]:
    """Packs latents into tokens of 4·c channels, ordered (c, row, column).

    Source: diffusers `FluxPipeline._pack_latents`.
    """
    return rearrange(latents, "b (y p) (x q) c -> b (y x) (c p q)", p=PATCH, q=PATCH)


def unpack(tokens: Float[Array, "b n d"], height: int, width: int) -> Float[Array, "b height width c"]:
    """Inverts `pack`; `height` and `width` are in latent pixels."""
    return rearrange(
        tokens, "b (y x) (c p q) -> b (y p) (x q) c", y=height // PATCH, x=width // PATCH, p=PATCH, q=PATCH
    )


def image_ids(height: int, width: int, offset: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Returns ids `[n, 3]`, float32, of `height × width` tokens: (0, row, column), shifted by `offset` tokens.

    Source: diffusers `FluxPipeline._prepare_latent_image_ids`.
    """
    ids = np.zeros((height, width, 3), np.float32)
    ids[..., 1] = np.arange(height)[:, None] + offset[0]
    ids[..., 2] = np.arange(width)[None, :] + offset[1]
    return ids.reshape(-1, 3)


def reference_ids(image: tuple[int, int], references: list[tuple[int, int]]) -> np.ndarray:
    """Returns ids `[n, 3]` of all reference tokens after an image of `image` tokens (rows, columns).

    References are placed along the diagonal, so that no two images share a row or a column: `references = [(2, 3),
    (1, 1)]` after a (4, 4) image start at (4, 4) and (6, 7).
    Source: UNO (arXiv 2504.02160), UnoPE.
    """
    rows, columns = image
    blocks = [np.zeros((0, 3), np.float32)]
    for height, width in references:
        blocks.append(image_ids(height, width, (rows, columns)))
        rows, columns = rows + height, columns + width
    return np.concatenate(blocks)
