"""Scores of classes in C++ on a CPU: the softmax of a window added to the sums of its picture, and the best class.

Without a compiler PyTorch's operations do the same, in three times the time, and a line in the log says so.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from util.record.log import log
from util.score.window.maps import mirror, on_cpu
from util.score.window.native import compiled

SOURCE = Path(__file__).with_suffix(".cpp")


def add_probabilities(sums: Tensor, weights: tuple[Tensor, Tensor], logits: Tensor, mirrored: bool) -> None:
    """Adds the softmax over C of logits (n, C, w), times the weights of rows (n,) and columns (w,), to sums (n, C, w).

    mirrored: the logits' columns are those of the sums from right to left. sums and weights: float32, columns next to
    each other in memory; the logits: of any type and strides. A NaN or a positive infinity among the logits of a pixel,
    or nothing but negative ones, makes its sums NaN. C is at most 256.
    """
    rows, columns = weights
    if kernel() is None:
        logits = logits.float()
        # torch.softmax over an axis that is not the last takes three times as long
        powers = (logits - logits.amax(1, keepdim=True)).contiguous().exp_()
        powers.div_(powers.sum(1, keepdim=True))
        sums.addcmul_(mirror(powers) if mirrored else powers, torch.outer(rows, columns).unsqueeze(1))
        return
    logits = _in_lines(logits)
    assert sums.shape == logits.shape == (len(rows), logits.shape[1], len(columns)), (sums.shape, logits.shape)
    assert sums.stride(2) == rows.stride(0) == columns.stride(0) == 1, (sums.stride(), rows.stride(), columns.stride())
    kernel().add_probabilities(
        sums.data_ptr(),
        *sums.stride()[:2],
        rows.data_ptr(),
        columns.data_ptr(),
        logits.data_ptr(),
        *logits.stride()[:2],
        *logits.shape,
        mirrored,
        torch.get_num_threads(),
    )


def first_argmax(scores: Tensor, out: Tensor | None = None) -> Tensor:
    """Class of the largest score, the first of equal ones: (C, H, W), C at most 256 -> uint8 (H, W)."""
    if not on_cpu(scores) or kernel() is None:
        found = scores.argmax(0).to(torch.uint8)
        return found if out is None else out.copy_(found)
    out = torch.empty(scores.shape[1:], dtype=torch.uint8) if out is None else out
    scores = _in_lines(scores)
    assert out.shape == scores.shape[1:] and out.stride(1) == 1, (out.shape, out.stride())
    kernel().first_argmax(
        scores.data_ptr(), *scores.stride()[:2], out.data_ptr(), out.stride(0), *scores.shape, torch.get_num_threads()
    )
    return out


def _in_lines(numbers: Tensor) -> Tensor:
    """The same in float32, the last axis next to each other in memory."""
    numbers = numbers.float()
    return numbers if numbers.stride(2) == 1 else numbers.contiguous()


@cache
def kernel() -> ctypes.CDLL | None:
    """The functions of scores.cpp; None, with a line in the log, where they cannot be compiled."""
    try:
        library = compiled(SOURCE)
    except ValueError as error:
        log.info("%s; scores of windows are summed by PyTorch instead, in three times the time", error)
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.add_probabilities.argtypes = [
        pointer,
        number,
        number,
        pointer,
        pointer,
        pointer,
        number,
        number,
        number,
        number,
        number,
        ctypes.c_int,
        ctypes.c_int,
    ]
    library.first_argmax.argtypes = [pointer, number, number, pointer, number, number, number, number, ctypes.c_int]
    return library
