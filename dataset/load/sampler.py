"""Which samples each micro-batch of a training has.

Step `s` of epoch `e` takes the entries [s*B, (s+1)*B) of a permutation drawn from (seed, e) alone, B being
the global batch size, in micro-batches one after the other; each process takes its share of each. So neither
the number of processes nor of workers changes which images a step sees and which of them are in a micro-batch,
and so share a batch norm over all processes; and a run continues at any step without replaying the steps before.
With class-uniform sampling (`uniform.py`) the order of an epoch, then no permutation, is drawn from (seed, e) alone as
well.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from dataset.base import Key
from dataset.load.uniform import ClassUniform
from dataset.read import DataError

# See `base.AUGMENTATION_STREAM`: the two random streams must not share a seed.
ORDER_STREAM = 2


def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Give the permutation of 0..length-1 in which epoch `epoch` visits the samples."""
    return np.random.default_rng([ORDER_STREAM, seed, epoch]).permutation(length)


class StepSampler(Sampler[list[Key]]):
    """Batch sampler that yields the micro-batches of one process, without end.

    Each is a list of keys.

    Args:
        length: samples of the data set.
        batch_size: samples of an optimiser step, of all processes and micro-batches.
        rank: number of this process.
        world_size: how many processes there are.
        seed: of the order.
        start_step: the first optimiser step, counted from the begin of the training.
        accumulate: micro-batches of a step in each process.
        uniform: draws the epochs; None: every sample once.

    Raises:
        DataError: with the arithmetic, where the batch cannot be shared out or exceeds the data set.
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
            raise DataError(
                f"batch size {batch_size} does not divide by {world_size} processes x {accumulate} "
                f"micro-batches = {parts}; the next that does is {max(-(-batch_size // parts), 1) * parts}"
            )
        if batch_size > length:
            most = length // parts * parts
            advice = f"take at most {most}" if most else f"a step has {parts} shares, use fewer"
            raise DataError(f"batch size {batch_size} exceeds the data set, which has {length} samples; {advice}")
        self.length, self.batch_size, self.seed, self.start_step = length, batch_size, seed, start_step
        self.micro_batch, self.uniform = batch_size // parts, uniform
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.steps_per_epoch = length // batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        for step in itertools.count(self.start_step):
            epoch, place = divmod(step, self.steps_per_epoch)
            if place == 0 or step == self.start_step:
                indices, points = epoch_order(self.seed, epoch, self.length), None
                if self.uniform is not None:
                    indices, points = self.uniform.build_epoch(self.seed, epoch)
            for part in range(self.accumulate):
                start = place * self.batch_size + (part * self.world_size + self.rank) * self.micro_batch
                share = indices[start : start + self.micro_batch].tolist()
                if points is None:
                    yield [Key(epoch, index) for index in share]
                    continue
                chosen = zip(share, points[start : start + self.micro_batch].tolist(), strict=True)
                yield [
                    Key(epoch, index, number, None if point[0] < 0 else tuple(point))
                    for number, (index, point) in enumerate(chosen, start)
                ]
