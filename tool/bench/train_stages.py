"""The seconds of the stages of a training step, of the plain loop and of ours."""

from collections.abc import Callable

import torch

from tool.bench.plain.train import PlainLoop
from tool.bench.timing import now
from util.train import loop

STAGES = ("data", "forward", "loss", "backward", "optimiser")


class Watch:
    """Seconds between marks, by the name of what has just ended; clock as in `tool.bench.timing.alternate`."""

    def __init__(self, clock: str):
        self.clock, self.seconds = clock, dict.fromkeys(STAGES, 0.0)
        self.begin()

    def begin(self) -> None:
        self.last = self._now()

    def mark(self, stage: str) -> None:
        now = self._now()
        self.seconds[stage] += now - self.last
        self.last = now

    def _now(self) -> float:
        return now(self.clock)


def plain_stages(plain: PlainLoop, image: torch.Tensor, label: torch.Tensor, clock: str) -> dict[str, float]:
    watch = Watch(clock)
    plain.step(image, label, watch.mark)
    return watch.seconds


def stages_of(training: loop.Training, step: Callable, clock: str) -> dict[str, float]:
    """Seconds of each stage of one step of the real loop, told by hooks."""
    watch = Watch(clock)
    hooks = [
        training.net.register_forward_hook(lambda *_: watch.mark("forward")),
        training.criterion.register_forward_hook(lambda *_: watch.mark("loss")),
        training.optimizer.register_step_pre_hook(lambda *_: watch.mark("backward")),
    ]
    watch.begin()
    step(watch.mark)
    watch.mark("optimiser")
    for hook in hooks:
        hook.remove()
    return watch.seconds


def stages_text(stages: dict[str, dict[str, float]]) -> str:
    """The table of stages as text."""
    width = max(map(len, stages))
    lines = [f"{'stages, ms a picture':<{width}}  " + "  ".join(f"{stage:>9}" for stage in STAGES)]
    for name, seconds in stages.items():
        lines.append(f"{name:<{width}}  " + "  ".join(f"{1000 * seconds[stage]:9.1f}" for stage in STAGES))
    return "\n".join(lines)
