"""Checkpoints: single files, and the folder of a run."""

from util.checkpoint.file import check_ours, damage, is_ours, load, load_strictly, save, save_weights, tensors

__all__ = ["check_ours", "damage", "is_ours", "load", "load_strictly", "save", "save_weights", "tensors"]
