"""What a training step gets: arrays of fixed shapes and nothing else."""

import flax.struct

from mllmsubj.typing import Leaf


@flax.struct.dataclass
class Rows:
    """What every batch has."""

    example: Leaf
    """[b] int32: which example of the source a row is."""
    skipped: Leaf
    """[b] int32: unreadable examples that were passed over for this row."""

    @property
    def shape(self) -> str:
        """What is compiled for, in words."""
        return f"batches of {len(self.example)}"


@flax.struct.dataclass
class Batch(Rows):
    """Rows of one bucket (a target size and a number of references); pictures are 8-bit, normalised on the device."""

    input_ids: Leaf
    """[b, s] int32, for the MLLM."""
    attention_mask: Leaf
    """[b, s] bool, False at padding."""
    clip_ids: Leaf
    """[b, u] int32."""
    tiles: Leaf
    """[b, r, height, width, 3] uint8: each reference squeezed into the MLLM's tile."""
    references: Leaf
    """[b, r, side, side, 3] uint8: each reference for the VAE, in the top left corner of a square; its sides are
    multiples of 16, and its last row and column are repeated to the square's borders."""
    reference_mask: Leaf
    """[b, r · n] bool: tokens of the squares, row-major, that belong to a reference."""
    target: Leaf
    """[b, height, width, 3] uint8."""
    text: tuple[int, int] = flax.struct.field(pytree_node=False)
    """Start and stop of the prompt and what follows it in `input_ids`, padding included."""
    images: tuple[tuple[int, int], ...] = flax.struct.field(pytree_node=False)
    """Start and stop of each reference's visual tokens."""

    @property
    def shape(self) -> str:
        return f"targets of {'x'.join(map(str, self.target.shape[1:3]))}, {len(self.images)} references"
