"""Scores a network on pictures.

Predict, count, and hand the predictions on to be written.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from util import UserError
from util.dist import barrier, gather_objects
from util.score.metric import ConfusionMatrix, Scores
from util.score.predict import Predictor
from util.score.window import first_argmax

WRITERS = 2  # threads that take finished predictions; OpenCV encodes without holding the interpreter's lock
WAITING = 8  # predictions that may wait for a writer before the next picture is predicted


@dataclass(frozen=True)
class Timing:
    """num_images and total_seconds are those of all processes together (sum, longest).

    seconds_per_image is the mean time of a prediction (transfer, network, averaging, argmax) on one process,
    without reading, scoring and writing. Each process's first picture, which warms up, is left out where it
    has more.
    """

    num_images: int
    seconds_per_image: float
    total_seconds: float


def shard(indices: Sequence[int], rank: int, world_size: int) -> list[int]:
    """Return the indices of one process: every world_size-th.

    None is repeated to make the shares equal.
    """
    return list(indices[rank::world_size])


def evaluate(
    predictor: Predictor,
    samples: Iterable[dict],
    confusion: ConfusionMatrix | None = None,
    on_prediction: Callable[[dict, np.ndarray], None] | None = None,
    on_probabilities: Callable[[dict, torch.Tensor], None] | None = None,
) -> tuple[Scores | None, Timing]:
    """Predict and score each sample; return scores and timing.

    Every process calls it with its own samples (see `shard`).

    Args:
        predictor: from a picture to its classes.
        samples: dicts with image (uint8 (3, H, W)), name, and label (integers (H, W)) where there is one; without a
            label they are predicted, not scored.
        confusion: an empty matrix, filled and summed over the processes here; None if there are no labels.
        on_prediction: called with the sample and its prediction, uint8 (H, W), in a thread beside the next
            predictions and in any order (`result.PredictionWriter`, for example); its errors are raised here.
        on_probabilities: called with the sample and its probabilities, float32 (C, H, W) on the predictor's device,
            one after the other.

    Returns:
        The scores (None without a matrix) and the time, the same on every process.

    Raises:
        UserError: a label is of another size than its picture, or holds an unknown class; it names the sample.
    """
    seconds: list[float] = []
    begin = time.perf_counter()
    with _background(on_prediction) as hand_on:
        for sample in samples:
            start = time.perf_counter()
            probabilities = None if on_probabilities is None else predictor.probabilities(sample["image"])
            prediction = predictor(sample["image"]) if probabilities is None else first_argmax(probabilities)
            if prediction.is_cuda:
                torch.cuda.synchronize(prediction.device)
            elif prediction.device.type == "mps":
                torch.mps.synchronize()
            seconds.append(time.perf_counter() - start)
            if on_probabilities is not None and probabilities is not None:
                on_probabilities(sample, probabilities)
            if confusion is not None and "label" in sample:
                _count(confusion, prediction, sample)
            if on_prediction is not None:
                hand_on(sample, prediction.cpu().numpy())
    barrier()  # the shares differ; a collective operation would count that as an error after a while
    if confusion is not None:
        confusion.reduce()
    timing = _timing(seconds, time.perf_counter() - begin)
    return (None if confusion is None else confusion.result()), timing


def compare(
    fast: Predictor, exact: Predictor, samples: Iterable[dict], num_classes: int, ignore_label: int = 255
) -> dict:
    """Score the same labelled samples in two ways.

    Every process calls it with its own samples.

    Returns, the same on every process: num_images; mIoU of each way on just these pictures and the first minus the
    second (None where no pixel is labelled); agreement, the share of pixels, labelled or not, with the same class.
    """
    ways = [ConfusionMatrix(num_classes, ignore_label, fast.device) for _ in range(2)]
    same = pixels = number = 0
    for sample in samples:
        first, second = fast(sample["image"]), exact(sample["image"])
        for confusion, prediction in zip(ways, (first, second), strict=True):
            _count(confusion, prediction, sample)
        same += int((first == second).sum())
        pixels += first.numel()
        number += 1
    for confusion in ways:
        confusion.reduce()
    number, same, pixels = (sum(values) for values in zip(*gather_objects((number, same, pixels)), strict=True))
    first_score, second_score = (way.result().mIoU for way in ways)
    defined = not math.isnan(first_score) and not math.isnan(second_score)
    return {
        "num_images": number,
        "mIoU": first_score if defined else None,
        "mIoU_exact": second_score if defined else None,
        "mIoU_difference": first_score - second_score if defined else None,
        "agreement": same / pixels if pixels else None,
    }


def _count(confusion: ConfusionMatrix, prediction: torch.Tensor, sample: dict) -> None:
    if "label" not in sample:
        raise UserError(f"sample {sample['name']} has no label: it cannot be scored, only predicted")
    try:
        confusion.update(prediction, sample["label"])
    except UserError as error:
        raise UserError(f"sample {sample['name']}: {error}") from None


@contextmanager
def _background(function: Callable | None) -> Iterator[Callable]:
    """Gives a call that runs `function` in a thread, and waits when too many calls are waiting already."""
    pending: deque[Future] = deque()
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="prediction") as pool:

        def submit(*arguments) -> None:
            if len(pending) >= WAITING:
                pending.popleft().result()
            assert function is not None
            pending.append(pool.submit(function, *arguments))

        yield submit
        for future in pending:
            future.result()


def _timing(seconds: list[float], total: float) -> Timing:
    steady = seconds[1:] or seconds
    shares = gather_objects((len(seconds), sum(steady), len(steady), total))
    num_images, spent, timed, totals = zip(*shares, strict=True)
    return Timing(sum(num_images), sum(spent) / max(sum(timed), 1), max(totals))
