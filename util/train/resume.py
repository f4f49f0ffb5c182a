"""Saves a run, and continues it where it stopped."""

import math
import operator
from dataclasses import dataclass
from pathlib import Path

import torch

from util import UserError, checkpoint, dist, flat
from util.checkpoint.facts import Facts
from util.checkpoint.manifest import digest, epoch_name, step_name
from util.checkpoint.store import CheckpointWriter, SavedCheckpoints, prepare_folder
from util.config.load import saved_config
from util.config.schema import Config
from util.record import lock, status
from util.record.log import log
from util.train import random_state
from util.train.loop import Training

# What may differ between a run and its continuation; anything else would make it another run.
MAY_CHANGE = (
    "data.root",
    "data.train_list",
    "data.val_list",
    "data.test_list",
    "data.long_side",
    "loader.workers",
    "loader.packed",
    "loader.cache",
    "data.check",
    "train.checkpointing",
    "train.epochs",
    "train.compile",
    "train.channels_last",
    "train.val_every",
    "train.val_scale",
    "train.val_curves",
    "train.save_every",
    "train.save_steps",
    "train.keep_last",
    "train.keep_every",
    "train.log_every",
    "train.trackers",
    "train.resume",
    "train.deterministic",
    "model.weights",
    "model.init",
    "model.init_skip",
    "model.sync_bn",
    "test.",
    "plugins",
)


@dataclass(frozen=True)
class Data:
    """The facts of the data in a checkpoint.

    class names, RGB colours, `facts` of each split that is used, and the map from values on disk to classes.
    """

    classes: tuple[str, ...]
    colors: list[list[int]]
    facts: dict[str, dict]
    label_map: dict[str, int] | None = None


def save(
    training: Training, checkpoints: CheckpointWriter, data: Data, improved: bool = False, wait: bool = False
) -> None:
    """Copy the state to the host's memory, and start to write it.

    Rank 0 writes, all contribute.

    Args:
        improved: whether it is the best so far.
        wait: until it is on the disk.

    Raises:
        OSError: it could not be written (if waited for), or the one before could not.
        UserError: the folder's lock is no longer this process's.
        NotFinite: a loss since the last log line is not finite; such a state is not kept.
    """
    training.losses.stop_if_not_finite()
    dist.main_first(lock.check)
    dist.main_first(checkpoints.wait)  # here, since its error must reach every process
    own = {"random": random_state.state(training.device), "window": _on_host(training.losses.entries, training.device)}
    ranks = dist.gather_objects(own)

    def start():
        state = state_of(training, data) | {"ranks": ranks}
        facts = {
            "step": training.step,
            "epoch": training.epochs_done,
            "config": digest(state["config"]),
            "data": digest(data.facts),
        }
        inside = training.step > training.epochs_done * training.steps_per_epoch
        name = step_name(training.step) if inside else epoch_name(training.epochs_done)
        checkpoints.save(name, state, facts, improved, wait)

    dist.main_first(start)


def state_of(training: Training, data: Data) -> dict:
    """Return what all processes share of a training's state.

    The tensors are copies on the host.
    """
    config = training.config
    test = config.test
    known = Facts(
        config.data.name,
        data.classes,
        tuple((red, green, blue) for red, green, blue in data.colors),
        data.label_map,
        config.data.mean,
        config.data.std,
        config.data.channel_order,
        {key: getattr(test, key) for key in ("scales", "flip", "window", "stride_rate", "base_size")},
        config.data.range,
    )
    state = {
        "model": training.eval_model.state_dict(),
        "spec": training.model.spec,
        "config": config.model_dump(mode="json"),
        **known.entries(),
        "data": data.facts,
        "step": training.step,
        "epoch": training.epochs_done,
        "steps_per_epoch": training.steps_per_epoch,
        "best": training.best,
        "losses": training.losses.newest,
        "optimizer": training.optimizer.state_dict(),
        "schedule": training.schedule.state_dict(),
        "scaler": training.scaler.state_dict(),
    }
    if training.ema is not None:
        state |= {"train_model": training.model.state_dict(), "averaged": training.ema.n_averaged}
    return _on_host(state, training.device)


def _on_host(value, device: torch.device):
    """Copy nested values; the tensors of the copy are in the host's memory."""
    copy = _to_host(value)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the copies into pinned memory are under way
    return copy


def _to_host(value):
    if isinstance(value, torch.Tensor):
        if not value.is_cuda:
            return value.detach().clone()
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        return {key: _to_host(each) for key, each in value.items()}
    return type(value)(_to_host(each) for each in value) if type(value) in (list, tuple) else value


def resume(training: Training, folder: Path, data: Data) -> CheckpointWriter:
    """Continue from the newest whole checkpoint of `folder`.

    If there is one and `train.resume` allows. Returns the writer of checkpoints.

    Returns:
        What writes the next checkpoints there.

    Raises:
        UserError: every checkpoint is damaged, or it belongs to an experiment that differs in more than `MAY_CHANGE`
            or to other data.
    """
    train = training.config.train
    dist.main_first(lambda: prepare_folder(folder))
    found = None if train.resume == "never" else dist.main_first(SavedCheckpoints(folder).newest)
    if found is not None:
        if not found.path.is_file():
            raise FileNotFoundError(
                f"{found.path}: rank 0 sees it, this machine does not; the run's folder must be shared"
            )
        restore(training, found.path, data)
        if dist.is_main():
            status.saved(found.path, training.step)
        log.info("continuing %s after epoch %d, step %d", found.path, training.epochs_done, training.step)
    return CheckpointWriter(folder, found, train.keep_last, train.keep_every)


def restore(training: Training, path: Path, data: Data) -> None:
    """Take over everything from the checkpoint `path`.

    Raises:
        UserError: as `resume` does.
    """
    state = checkpoint.load(path)
    if checkpoint.is_ours(state):
        checkpoint.check_ours(state, path)
    try:
        refuse_changes(state, training.config, str(path), data)
        _take_over(training, state, path, data)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        # whole by its checksums, but nothing that this program has written
        raise UserError(f"{path}: what it says of its run cannot be continued ({error!r:.200})") from error


def _take_over(training: Training, state: dict, path: Path, data: Data) -> None:
    """Take over everything from a loaded checkpoint."""
    weights = state["model"] if training.ema is None else state["train_model"]
    checkpoint.load_strictly(training.model, weights, str(path))
    if training.ema is not None:
        checkpoint.load_strictly(training.ema.module, state["model"], str(path))
        training.ema.n_averaged.copy_(state["averaged"])
    training.losses.newest = dict(state.get("losses", {}))
    training.step, training.epochs_done = (operator.index(state[key]) for key in ("step", "epoch"))
    training.best = float(state["best"])
    if not 0 <= training.epochs_done <= training.step < 2**53 or math.isnan(training.best):
        raise ValueError(f"step {training.step}, epoch {training.epochs_done}, best {training.best}")
    if state["steps_per_epoch"] != training.steps_per_epoch:  # other data or batches, by force
        training.step = training.epochs_done * training.steps_per_epoch
    if "val" in _changed_data(state.get("data", {}), data.facts):
        training.best = -1.0  # a score on other pictures
    _restore_optimizer(training, state)
    training.scaler.load_state_dict(state["scaler"])
    _restore_ranks(training, state["ranks"])


def _restore_optimizer(training: Training, state: dict) -> None:
    """Take the momentum from the checkpoint; rates and schedule from the experiment, which may have changed."""
    optimizer, schedule = training.optimizer, training.schedule
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    _lay_out(optimizer)
    for group, settings, base, factor in zip(
        optimizer.param_groups, own, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group.update(settings)
        group["lr"] = base * factor(training.step)
    rates = [group["lr"] for group in optimizer.param_groups]
    place = {"last_epoch": training.step, "_step_count": training.step + 1, "_last_lr": rates}
    schedule.load_state_dict(schedule.state_dict() | place)


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give what belongs to a parameter its memory format.

    It may be another one than in the checkpoint. The fused kernels go through the memory of both: on a CPU they would
    mix up the numbers, on a GPU they refuse.
    """
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _restore_ranks(training: Training, ranks: list[dict]) -> None:
    """Take over the random streams, and the losses since the last log line."""
    if len(ranks) == dist.world_size():
        own = ranks[dist.rank()]
        random_state.restore(own["random"], training.device)
        training.losses.entries = [(step, _to(terms, training.device), names) for step, terms, names in own["window"]]
        return
    log.info("the number of processes changed: same pictures and augmentation, other dropout")
    for steps in zip(*(each["window"] for each in ranks), strict=True):
        first, terms, _ = steps[0]
        mean = {name: sum(each[1][name] for each in steps) / len(steps) for name in terms}
        training.losses.add(first, _to(mean, training.device), [name for each in steps for name in each[2]])


def _to(terms: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in terms.items()}


def refuse_changes(state: dict, config: Config, path: str, data: Data) -> None:
    """Refuse to continue a run with another experiment or data.

    Raises:
        UserError: lists what differs.
    """
    if not checkpoint.is_ours(state) or "ranks" not in state:
        raise UserError(f"{path}: holds no run to continue; use train.resume=never or another --exp folder")
    earlier = saved_config(state["config"], path)  # fills in keys that are younger than the checkpoint
    before, after = flat(earlier.model_dump(mode="json")), flat(config.model_dump(mode="json"))
    changed = [k for k in sorted(before.keys() | after.keys()) if before.get(k) != after.get(k)]
    refused = [f"{k} {before.get(k)} -> {after.get(k)}" for k in changed if not k.startswith(MAY_CHANGE)]
    if tuple(state["classes"]) != tuple(data.classes):
        refused.append(f"classes {state['classes']} -> {list(data.classes)}")
    refused += [line for lines in _changed_data(state["data"], data.facts).values() for line in lines]
    if refused and config.train.resume != "force":
        raise UserError(
            f"{path} belongs to an experiment that differs: {'; '.join(refused)}. Undo the change, start anew with "
            "train.resume=never, keep both with --exp OTHER_FOLDER, or continue all the same with train.resume=force"
        )
    for line in refused:
        log.warning("continuing all the same with %s", line)
    for key in changed:
        if key.startswith(MAY_CHANGE):
            log.info("continuing with %s: %s -> %s", key, before.get(key), after.get(key))


def _changed_data(before: dict[str, dict], after: dict[str, dict]) -> dict[str, list[str]]:
    """List what differs in the data, by split."""
    changed: dict[str, list[str]] = {}
    for split in before.keys() & after.keys():
        old, new = before[split], after[split]
        if old["pictures"] != new["pictures"]:
            changed.setdefault(split, []).append(f"{split} list {old['pictures']} -> {new['pictures']} pictures")
        elif old["list"] != new["list"]:
            changed.setdefault(split, []).append(f"{split} list: other pictures or another order")
        if old["label_map"] != new["label_map"]:
            changed.setdefault(split, []).append(f"label map of the {split} list")
    return changed
