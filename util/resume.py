"""Saving a run and continuing it where it stopped."""

from pathlib import Path

import torch

from util import checkpoint, dist
from util.config import Config, check_config
from util.log import log
from util.loop import Training

# What may differ between a run and its continuation; anything else would make it another run.
MAY_CHANGE = (
    "data.root", "data.train_list", "data.val_list", "data.test_list", "data.workers", "data.loader",
    "data.packed", "data.cache", "data.check", "train.epochs", "train.compile", "train.checkpointing",
    "train.channels_last", "train.val_every", "train.val_scale", "train.save_every", "train.log_every",
    "train.resume", "model.weights", "model.init", "model.init_skip", "model.sync_bn", "test.",
)


def save(training: Training, files: tuple[Path, Path], train_set, improved: bool) -> None:
    """Writes the last checkpoint, and the best if the last validation was; rank 0 writes, all contribute.

    Args:
        files: paths of the last and of the best checkpoint.
        train_set: gives length, class names and colours.
        improved: whether this is the best so far.
    """
    last, best = files
    random_states = dist.gather_objects(_random_state(training.device))
    raw = training.model.state_dict()

    def write():
        state = {
            "model": training.scored.state_dict(),
            "spec": training.model.spec,
            "config": training.config.model_dump(mode="json"),
            "classes": list(train_set.classes),
            "colors": [list(map(int, color)) for color in train_set.colors],
            "step": training.step,
            "epoch": training.closed,
            "best": training.best,
            "optimizer": training.optimizer.state_dict(),
            "schedule": training.schedule.state_dict(),
            "scaler": training.scaler.state_dict(),
            "random": random_states,
        }
        if training.ema is not None:
            state |= {"train_model": raw, "averaged": training.ema.n_averaged}
        last.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(last, state)
        if improved:
            checkpoint.save(best, state)

    dist.main_first(write)


def _random_state(device: torch.device) -> dict:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def resume(training: Training, last: Path, train_set) -> None:
    """Continues from the checkpoint `last`, if there is one and `train.resume` allows.

    Raises:
        ValueError: the checkpoint is damaged, or belongs to an experiment that differs in more than `MAY_CHANGE`.
    """
    if training.config.train.resume == "never" or not last.is_file():
        return
    state = checkpoint.load(last)
    refuse_changes(state, training.config, last, train_set)
    weights = state["model"] if training.ema is None else state["train_model"]
    checkpoint.load_strictly(training.model, weights, str(last))
    if training.ema is not None:
        checkpoint.load_strictly(training.ema.module, state["model"], str(last))
        training.ema.n_averaged.copy_(state["averaged"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.schedule.load_state_dict(state["schedule"])
    training.scaler.load_state_dict(state["scaler"])
    training.step, training.closed, training.best = state["step"], state["epoch"], state["best"]
    if len(state["random"]) == dist.world_size():
        own = state["random"][dist.rank()]
        torch.set_rng_state(own["cpu"])
        if "cuda" in own and training.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda"], training.device)
    else:
        log.info("the number of processes changed: same pictures and augmentation, other dropout")
    log.info("continuing %s after epoch %d, step %d", last, state["epoch"], state["step"])


def refuse_changes(state: dict, config: Config, path: Path, train_set) -> None:
    """Raises ValueError with the list of what makes `config` another run than the checkpoint's."""
    if not checkpoint.is_ours(state) or "optimizer" not in state:
        raise ValueError(f"{path}: holds no run to continue; use train.resume=never or another --exp folder")
    earlier = check_config(state["config"], str(path))  # fills in keys that are younger than the checkpoint
    before, after = _flat(earlier.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
    changed = [k for k in sorted(before.keys() | after.keys()) if before.get(k) != after.get(k)]
    refused = [f"{k} {before.get(k)} -> {after.get(k)}" for k in changed if not k.startswith(MAY_CHANGE)]
    if tuple(state["classes"]) != tuple(train_set.classes):
        refused.append(f"classes {state['classes']} -> {list(train_set.classes)}")
    if refused:
        raise ValueError(
            f"{path} belongs to an experiment that differs: {'; '.join(refused)}. Undo the change, start anew with "
            "train.resume=never, or keep both with --exp OTHER_FOLDER"
        )
    for key in changed:
        log.info("continuing with %s: %s -> %s", key, before.get(key), after.get(key))


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        nested = isinstance(value, dict) and prefix + key in ("data", "model", "loss", "optim", "train", "test")
        flat |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat
