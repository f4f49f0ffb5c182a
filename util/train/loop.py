"""The training loop: an optimiser step, and the steps of an epoch."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from util import dist
from util.config.schema import Config
from util.loss import SegLoss
from util.record import status
from util.record.log import log
from util.record.machine import peak_memory
from util.record.trackers import Writer
from util.train.losslog import LossLog
from util.train.prefetch import Prefetch, Waits
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
    schedule: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None
    steps_per_epoch: int
    step: int = 0
    epochs_done: int = 0  # trained and, where it is due, validated
    best: float = -1.0
    losses: LossLog = field(default_factory=LossLog)  # since the last log line

    def __post_init__(self) -> None:
        # Colour mean and deviation, (3, 1, 1) on the device; made once, since each copy makes the host wait.
        data = self.config.data
        self.mean, self.std = (torch.tensor(each, device=self.device)[:, None, None] for each in (data.mean, data.std))

    @property
    def eval_model(self) -> nn.Module:
        """Return the evaluation model: the averaged one, if any."""
        return self.model if self.ema is None else self.ema.module


def train_epoch(training: Training, batches: Prefetch, epoch: int, progress: Progress, writer: Writer) -> Iterator[int]:
    """Train an epoch; yield the steps done at each boundary.

    epoch: from 0. What is left of it is trained, if the run continues inside of it.
    """
    last = (epoch + 1) * training.steps_per_epoch
    training.net.train()
    while training.step < last:
        dist.at(f"step {training.step}")
        batch = next(batches)
        names = [name for micro_batch in batch for name in micro_batch["name"]]
        terms = optimizer_step(training, [to_device(micro_batch, training) for micro_batch in batch])
        training.losses.add(training.step, terms, names)
        training.step += 1
        if training.step < progress.total:
            batches.stage()  # fetched while the device computes
        progress.step()
        if training.step % training.config.train.log_every == 0 or training.step == last:
            report(training, epoch, progress, batches.waits, writer)
        yield training.step


def report(training: Training, epoch: int, progress: Progress, waits: Waits, writer: Writer) -> None:
    """Write a log line, the progress bar, the status and TensorBoard's scalars.

    The only place of a step where the host waits for the device.

    Raises:
        NotFinite: a loss since the last line is not finite.
    """
    means, overflows = training.losses.take()
    values = progress.line(max(dist.gather_objects(waits.take())))  # all processes wait for the slowest loader
    rates = {group["name"]: group["lr"] for group in training.optimizer.param_groups}
    rate = next(iter(rates.values()))  # that of the backbone, or of a network without one
    text = " ".join(f"{name} {value:.4f}" for name, value in means.items())
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
        values.speed,
        100 * values.wait,
        values.left,
        peak_memory(training.device),
    )
    progress.show(f"{text} lr {rate:.2e} wait {values.wait:.1%}")
    skipped = training.losses.skipped
    status.note(
        state="running",
        step=training.step,
        epoch=epoch + 1,
        loss=means["loss"],
        speed=values.speed,
        wait=values.wait,
        skipped=skipped,
    )
    scalars = {f"train/{name}": value for name, value in means.items()}
    scalars |= {f"lr/{name}": value for name, value in rates.items()}
    scalars |= {"speed/pictures_per_second": values.speed, "speed/waiting_for_data": values.wait}
    if training.scaler.is_enabled():
        scalars["amp/skipped_steps"] = skipped
    for name, value in scalars.items():
        writer.add_scalar(name, value, training.step)


def to_device(batch: dict, training: Training) -> tuple[Tensor, Tensor]:
    """Return normalised image (n, 3, h, w) and label (n, h, w)."""
    image = batch["image"].to(training.device, non_blocking=True)
    label = batch["label"].to(training.device, non_blocking=True)
    image = image.float().sub_(training.mean).div_(training.std)
    if training.config.data.channel_order == "bgr":
        image = image.flip(1)
    layout = torch.channels_last if training.config.train.channels_last else torch.contiguous_format
    return image.contiguous(memory_format=layout), label


def optimizer_step(training: Training, micro_batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Train one step on its micro-batches; return its loss terms.

    The terms stay on the device. The loss is the mean over all valid pixels of the whole batch, of every process and
    micro-batch, so that neither the number of processes nor that of the micro-batches moves it.
    """
    optim, amp = training.config.optim, AMP_TYPES[training.config.train.amp]
    counts = torch.zeros(2, device=training.device)
    for _, label in micro_batches:
        counts += training.criterion.normaliser(label)
    normaliser = dist.all_reduce_sum_(counts) / dist.world_size()  # DDP averages the gradients over the processes
    sums: dict[str, Tensor] = {}
    for index, (image, label) in enumerate(micro_batches):
        more = index < len(micro_batches) - 1 and dist.world_size() > 1  # DDP averages after the last one alone
        with dist.no_sync(training.net) if more else nullcontext():
            # Forward
            with torch.autocast(training.device.type, amp, enabled=amp is not None):
                outputs = training.net(image)
            # Loss
            loss, terms = training.criterion(outputs, label, normaliser)
            # Backward
            training.scaler.scale(loss).backward()
        for name, value in {"loss": loss.detach(), **terms}.items():
            sums[name] = sums.get(name, 0) + value
    # Step
    if optim.clip_grad is not None:
        training.scaler.unscale_(training.optimizer)
        nn.utils.clip_grad_norm_(training.model.parameters(), optim.clip_grad)
    training.scaler.step(training.optimizer)
    if training.scaler.is_enabled():
        update_scale(training)
    training.optimizer.zero_grad(set_to_none=True)
    training.schedule.step()
    if training.ema is not None:
        # The average starts as what the first step gave; the weights before it were never trained.
        update_average(training.ema, training.model, training.config.train.ema or 0.0 if training.step else 0.0)
    return sums


def update_scale(training: Training) -> None:
    """Adapt the scale of fp16 gradients; count the overflows.

    On the device. The optimiser has left such a step out; the schedule goes on all the same, since it is a function of
    the step's number. The scale is read as what a one becomes, since `get_scale` makes the host wait for the device.
    """
    scaler = training.scaler
    one = torch.ones((), device=training.device)
    before = scaler.scale(one)
    scaler.update()
    training.losses.overflows = training.losses.overflows + (scaler.scale(one) < before)


@torch.no_grad()
def update_average(average: AveragedModel, model: nn.Module, decay: float) -> None:
    """Move the averaged weights and buffers towards the network's.

    The same as `AveragedModel.update_parameters`, which reads `n_averaged` on the host at every step, so that the host
    waits for the device.
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
