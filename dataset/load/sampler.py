"""The order of the samples: which of them a step has.

Step `s` of epoch `e` takes the entries [s*B, (s+1)*B) of a permutation drawn from (seed, e) alone, B being
the global batch size; each process takes its contiguous share. So neither the number of processes nor of
workers changes which pictures a step sees, and a run continues at any step without replaying the steps
before. With class-uniform sampling (`uniform.py`) the order of an epoch, then no permutation, is drawn from
(seed, e) alone as well.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from dataset.load.uniform import ClassUniform

# See `base.AUGMENTATION_STREAM`: the two random streams must not share a seed.
ORDER_STREAM = 2


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one process: the global optimiser step it belongs to, the epoch, the samples.

    With class-uniform sampling also the position of the first sample in the epoch, and the point (row,
    column) that each crop must hold, or None.
    """

    step: int
    epoch: int
    indices: tuple[int, ...]
    position: int = 0
    points: tuple[tuple[int, int] | None, ...] | None = None

    @property
    def keys(self) -> list[tuple]:
        """What the data set is asked for."""
        if self.points is None:
            return [(self.epoch, index) for index in self.indices]
        pairs = enumerate(zip(self.indices, self.points, strict=True), start=self.position)
        return [(self.epoch, index, position, point) for position, (index, point) in pairs]


def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The permutation of 0..length-1 in which epoch `epoch` visits the samples."""
    return np.random.default_rng([ORDER_STREAM, seed, epoch]).permutation(length)


class StepSampler(Sampler):
    """Endless micro-batches of one process from `start_step` on. uniform: draws the epochs, None: all samples
    once.

    Raises ValueError, with the arithmetic, where the batch cannot be shared out or exceeds the data set.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        start_step: int = 0,
        accumulate: int = 1,
        uniform: ClassUniform | None = None,
    ):
        assert 0 <= rank < world_size and accumulate >= 1 and start_step >= 0
        parts = world_size * accumulate
        if batch_size < 1 or batch_size % parts:
            raise ValueError(
                f"batch size {batch_size} does not divide by {world_size} processes x {accumulate} "
                f"micro-batches = {parts}; the next that does is {max(-(-batch_size // parts), 1) * parts}"
            )
        if batch_size > length:
            most = length // parts * parts
            advice = f"take at most {most}" if most else f"a step has {parts} shares, use fewer"
            raise ValueError(f"batch size {batch_size} exceeds the data set, which has {length} samples; {advice}")
        self.length, self.batch_size, self.seed, self.start_step = length, batch_size, seed, start_step
        self.part, self.uniform = batch_size // parts, uniform
        self.share = batch_size // world_size
        self.first = rank * self.share
        self.steps_per_epoch = length // batch_size

    def __iter__(self) -> Iterator[MicroBatch]:
        for step in itertools.count(self.start_step):
            epoch, place = divmod(step, self.steps_per_epoch)
            if place == 0 or step == self.start_step:
                order, points = self._epoch(epoch)
            first = place * self.batch_size + self.first
            for start in range(first, first + self.share, self.part):
                part = slice(start, start + self.part)
                held = None if points is None else tuple(points[part])
                yield MicroBatch(step, epoch, tuple(order[part].tolist()), start, held)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, list[tuple[int, int] | None] | None]:
        """The samples of an epoch in their order, and the point that each crop must hold."""
        if self.uniform is None:
            return epoch_order(self.seed, epoch, self.length), None
        order = self.uniform.build_epoch(self.seed, epoch)
        return order.indices, [None if row < 0 else (row, column) for row, column in order.points.tolist()]
