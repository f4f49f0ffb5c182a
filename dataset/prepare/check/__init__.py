"""Checks a data set before the first step.

Reads every label once, compares sizes, names every mistake's file. However long the list, what is kept are sums and a
few examples of each mistake; they are written down as the check goes on, so that one that was killed continues.
`sample` inspects one sample, `tally` sums, `report` says what the sums mean, `walk` does all three for a list, and
`splits` compares two lists.
"""

from dataset.prepare.check.report import Report
from dataset.prepare.check.splits import compare_splits, shared_images
from dataset.prepare.check.walk import check_dataset

__all__ = ["Report", "check_dataset", "compare_splits", "shared_images"]
