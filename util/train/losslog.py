"""The losses of the steps since the last log line."""

import math

import torch
from torch import Tensor

from util import dist

Entry = tuple[int, dict[str, Tensor], list[str]]  # step, loss terms on the device, names of the samples


class LossLog:
    """Loss terms since the last log line, kept on the device.

    overflows: of these steps, those whose fp16 gradients overflowed. skipped: the same of all steps before.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.overflows: Tensor | int = 0
        self.skipped = 0
        self.newest: dict[str, float] = {}  # means of the last log line; none before the first

    def add(self, step: int, terms: dict[str, Tensor], names: list[str]) -> None:
        self.entries.append((step, terms, names))

    def table(self) -> tuple[list[str], Tensor]:
        """Return names and values (steps, terms) of the loss terms."""
        names = list(self.entries[0][1])
        return names, torch.stack([torch.stack([terms[name] for name in names]) for _, terms, _ in self.entries])

    def stop_if_not_finite(self) -> None:
        """Stop at a loss that is not finite, on any process.

        Raises:
            NotFinite: names the first such step.
        """
        if not self.entries:
            return
        names, table = self.table()
        rows = [dict(zip(names, row, strict=True)) for row in table.tolist()]
        bad = [not all(map(math.isfinite, row.values())) for row in rows]
        first = min((i for each in dist.gather_objects(bad) for i, is_bad in enumerate(each) if is_bad), default=None)
        if first is None:
            return
        step, _, samples = self.entries[first]
        raise NotFinite(step, dist.gather_objects({"terms": rows[first], "samples": samples}))

    def take(self) -> tuple[dict[str, float], int]:
        """Return means of the loss terms and the overflows; begin anew.

        Means over steps and processes.

        Raises:
            NotFinite: one of the losses is not.
        """
        names, table = self.table()
        means = (dist.all_reduce_sum_(table.mean(0)) / dist.world_size()).tolist()
        self.stop_if_not_finite()
        overflows, self.newest = int(self.overflows), dict(zip(names, means, strict=True))
        self.entries, self.overflows, self.skipped = [], 0, self.skipped + overflows
        return self.newest, overflows


class NotFinite(FloatingPointError):
    """A loss is not finite.

    step: the first such one. ranks: on each process its terms and the names of its samples.
    """

    def __init__(self, step: int, ranks: list[dict]):
        self.step, self.ranks = step, ranks
        worst = next((each for each in ranks if not all(map(math.isfinite, each["terms"].values()))), ranks[0])
        terms = ", ".join(f"{name} {value}" for name, value in worst["terms"].items())
        super().__init__(
            f"the loss is not finite at step {step}: {terms}; samples: {', '.join(worst['samples'])}. No checkpoint "
            "was written since; a smaller optim.lr, optim.warmup_iters, optim.clip_grad, or train.amp=off may help"
        )
