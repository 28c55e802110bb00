"""Sweeps: many runs of one experiment with different overrides. Sweep files import what they need from here."""

from mllmsubj.config.overrides import Overrides
from mllmsubj.sweeps.axes import grid, listed, product, zipped

__all__ = ["Overrides", "grid", "listed", "product", "zipped"]
