"""Checkpoints: one file, written whole, read with suspicion; and a folder of them."""

from util.checkpoint.file import check_ours, damage, is_ours, load, load_strictly, save, tensors

__all__ = ["check_ours", "damage", "is_ours", "load", "load_strictly", "save", "tensors"]
