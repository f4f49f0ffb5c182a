"""The training loop: what an epoch, an optimiser step and a log line are."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from util import dist
from util.config.schema import Config
from util.loss import SegLoss
from util.record import status
from util.record.log import log
from util.record.machine import peak_memory
from util.train.prefetch import MOVED, Prefetch, Waits
from util.train.progress import Progress

AMP_TYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Training:
    """Everything that changes while a network is trained."""

    config: Config
    device: torch.device
    model: nn.Module  # the bare network
    net: nn.Module  # the same, as the processes share it
    criterion: SegLoss
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None
    steps_per_epoch: int
    step: int = 0
    closed: int = 0  # epochs that are trained and, where it is due, validated
    best: float = -1.0
    window: list = field(default_factory=list)  # (step, terms, names) since the last log line
    overflows: torch.Tensor | int = 0  # steps since the last log line that fp16 gradients overflowed in
    skipped: int = 0  # those before, in this process

    @property
    def scored(self) -> nn.Module:
        """The network that is validated and saved for use: the averaged one if there is one."""
        return self.model if self.ema is None else self.ema.module

    @cached_property
    def mean_std(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Colour mean and deviation, (3, 1, 1) on the device; made once, since each copy makes the host wait."""
        data = self.config.data
        mean, std = (torch.tensor(values, device=self.device)[:, None, None] for values in (data.mean, data.std))
        return mean, std


def train_epoch(
    training: Training, batches: Prefetch, last: int, epoch: int, progress: Progress, writer, border: Callable[[], bool]
) -> None:
    """Optimiser steps up to step `last`, or until `border`, called between two of them, says to stop."""
    train = training.config.train
    training.net.train()
    while training.step < last:
        dist.at(f"step {training.step}")
        parts = next(batches)
        names = [name for part in parts for name in part["name"]]
        parts = [to_device(part, training) for part in parts]
        terms = optimizer_step(training, parts)
        del parts
        training.window.append((training.step, terms, names))
        training.step += 1
        if training.step < progress.total:
            batches.stage()
        progress.step()
        if training.step % train.log_every == 0 or training.step == last:
            report(training, epoch, progress, batches.waits, writer)
        if border():
            return


def to_device(batch: dict, training: Training) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised picture (n, 3, h, w) and label (n, h, w) on the device."""
    image, label = (batch[name].to(training.device, non_blocking=True) for name in MOVED)
    mean, std = training.mean_std
    image = image.float().sub_(mean).div_(std)
    layout = torch.channels_last if training.config.train.channels_last else torch.contiguous_format
    return image.contiguous(memory_format=layout), label


def optimizer_step(training: Training, parts: list) -> dict[str, torch.Tensor]:
    """One step on the parts of a batch; its loss terms, as tensors on the device.

    The loss is the mean over all valid pixels of the whole batch, of every process and part, so that neither the
    number of processes nor that of the parts moves it.
    """
    optim, amp = training.config.optim, AMP_TYPES[training.config.train.amp]
    counts = sum(training.criterion.normaliser(label) for _, label in parts)
    normaliser = dist.all_reduce_sum_(counts) / dist.world_size()  # DDP averages the gradients over the processes
    sums: dict[str, torch.Tensor] = {}
    for index, (image, label) in enumerate(parts):
        alone = index < len(parts) - 1 and dist.world_size() > 1
        with dist.no_sync(training.net) if alone else nullcontext():
            with torch.autocast(training.device.type, amp, enabled=amp is not None):
                outputs = training.net(image)
            loss, terms = training.criterion(outputs, label, normaliser)
            training.scaler.scale(loss).backward()
        for name, value in {"loss": loss.detach(), **terms}.items():
            sums[name] = sums.get(name, 0) + value
    if optim.clip_grad is not None:
        training.scaler.unscale_(training.optimizer)
        nn.utils.clip_grad_norm_(training.model.parameters(), optim.clip_grad)
    training.scaler.step(training.optimizer)
    update_scale(training)
    training.optimizer.zero_grad(set_to_none=True)
    training.schedule.step()
    if training.ema is not None:
        # The average starts as what the first step gave; the weights before it were never trained.
        update_average(training.ema, training.model, training.config.train.ema if training.step else 0.0)
    return sums


def update_scale(training: Training) -> None:
    """Adapts the scale of fp16 gradients, and counts on the device the steps that overflowed.

    The optimiser has left such a step out; the schedule goes on all the same, since it is a function of the step's
    number. The scale is read as what a one becomes, since `get_scale` makes the host wait for the device.
    """
    scaler = training.scaler
    if not scaler.is_enabled():
        return
    one = torch.ones((), device=training.device)
    before = scaler.scale(one)
    scaler.update()
    training.overflows = training.overflows + (scaler.scale(one) < before)


@torch.no_grad()
def update_average(average: AveragedModel, model: nn.Module, decay: float) -> None:
    """Moves the averaged weights and buffers towards the network's, as `AveragedModel.update_parameters` does.

    That one reads on the host how many networks are in it, and copies the number to the device in every step.
    """
    means, values = [], []
    for mean, value in zip(_tensors(average.module), _tensors(model), strict=True):
        if mean.is_floating_point():
            means.append(mean)
            values.append(value)
        else:
            mean.copy_(value)  # the counts of batch norm
    torch._foreach_lerp_(means, values, 1 - decay)
    average.n_averaged += 1


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def report(training: Training, epoch: int, progress: Progress, waits: Waits, writer) -> None:
    """Logs the mean of the loss terms since the last line; stops at one that is not finite.

    The only place of a step where the host waits for the device.
    """
    names, table = losses(training)
    means = (dist.all_reduce_sum_(table.mean(0)) / dist.world_size()).tolist()
    stop_if_not_finite(training)
    training.window.clear()
    overflows, training.overflows = int(training.overflows), 0
    training.skipped += overflows
    values = progress.line(max(dist.gather_objects(waits.take())))  # all processes wait for the slowest loader
    rates = {g["name"]: g["lr"] for g in training.optimizer.param_groups}
    rate = next(iter(rates.values()))  # that of the backbone, or of a network without one
    text = " ".join(f"{name} {value:.4f}" for name, value in zip(names, means, strict=True))
    if overflows:
        text += f" overflows {overflows} (steps left out)"
    log.info(
        "epoch %d/%d step %d/%d %s lr %.2e %.1f pictures/s wait %.1f%% left %s memory %s",
        epoch + 1,
        training.config.train.epochs,
        training.step,
        progress.total,
        text,
        rate,
        values["pictures/s"],
        100 * values["wait"],
        values["left"],
        peak_memory(training.device),
    )
    progress.show(f"{text} lr {rate:.2e} wait {values['wait']:.1%}")
    status.note(
        state="running",
        step=training.step,
        epoch=epoch + 1,
        loss=means[names.index("loss")],
        speed=values["pictures/s"],
        wait=values["wait"],
        skipped=training.skipped,
    )
    if training.scaler.is_enabled():
        writer.add_scalar("amp/skipped_steps", training.skipped, training.step)
    for name, value in zip(names, means, strict=True):
        writer.add_scalar(f"train/{name}", value, training.step)
    for name, value in rates.items():
        writer.add_scalar(f"lr/{name}", value, training.step)
    writer.add_scalar("speed/pictures_per_second", values["pictures/s"], training.step)
    writer.add_scalar("speed/waiting_for_data", values["wait"], training.step)


def losses(training: Training) -> tuple[list[str], torch.Tensor]:
    """Names of the loss terms, and their values (steps, terms) since the last log line, on the device."""
    names = list(training.window[0][1])
    return names, torch.stack([torch.stack([terms[name] for name in names]) for _, terms, _ in training.window])


class NotFinite(FloatingPointError):
    """A loss is not finite: the first such step, and on each process its terms and the names of its samples."""

    def __init__(self, step: int, ranks: list[dict]):
        self.step, self.ranks = step, ranks
        worst = next((each for each in ranks if not all(map(math.isfinite, each["terms"].values()))), ranks[0])
        terms = ", ".join(f"{name} {value}" for name, value in worst["terms"].items())
        super().__init__(
            f"the loss is not finite at step {step}: {terms}; samples: {', '.join(worst['samples'])}. No checkpoint "
            "was written since; a smaller optim.lr, optim.warmup_iters, optim.clip_grad, or train.amp=off may help"
        )


def stop_if_not_finite(training: Training) -> None:
    """Raises NotFinite if a loss since the last log line is not finite, on any process; reads them on the host."""
    if not training.window:
        return
    names, table = losses(training)
    rows = [dict(zip(names, row, strict=True)) for row in table.tolist()]
    bad = [not all(map(math.isfinite, row.values())) for row in rows]
    first = min((i for each in dist.gather_objects(bad) for i, is_bad in enumerate(each) if is_bad), default=None)
    if first is None:
        return
    step, _, samples = training.window[first]
    raise NotFinite(step, dist.gather_objects({"terms": rows[first], "samples": samples}))
