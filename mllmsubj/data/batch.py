"""Batches for a training step: arrays of fixed shapes."""

import flax.struct

from mllmsubj.typing import Leaf


@flax.struct.dataclass
class Rows:
    """Fields common to all batches."""

    example: Leaf
    """[b] int32: number of the row's example in the source."""
    skipped: Leaf
    """[b] int32: number of unreadable examples that were skipped for this row."""

    @property
    def shape(self) -> str:
        """Description of the shapes that a step is compiled for, for log messages."""
        return f"batches of {len(self.example)}"


@flax.struct.dataclass
class Batch(Rows):
    """Rows of one bucket (a target size and a number of references); 8-bit images are normalized on the device."""

    input_ids: Leaf
    """[b, s] int32: token ids for the MLLM."""
    attention_mask: Leaf
    """[b, s] bool, False at padding."""
    clip_ids: Leaf
    """[b, u] int32: token ids for CLIP."""
    tiles: Leaf
    """[b, r, height, width, 3] uint8: each reference resized to the MLLM's tile, without regard to its aspect."""
    references: Leaf
    """[b, r, side, side, 3] uint8: each reference for the VAE, in the top left corner of a square. Its sides are
    multiples of 16, and its last row and column are repeated to the square's borders."""
    reference_mask: Leaf
    """[b, r · n] bool: True for tokens of the squares, row-major, that belong to a reference."""
    target: Leaf
    """[b, height, width, 3] uint8: target images."""
    text: tuple[int, int] = flax.struct.field(pytree_node=False)
    """Start and stop in `input_ids` of the prompt, the end of the template, and the padding."""
    images: tuple[tuple[int, int], ...] = flax.struct.field(pytree_node=False)
    """Start and stop in `input_ids` of each reference's visual tokens."""

    @property
    def shape(self) -> str:
        """Description of the target size and the number of references."""
        return f"targets of {'x'.join(map(str, self.target.shape[1:3]))}, {len(self.images)} references"
