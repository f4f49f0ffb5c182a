"""What every command does first: read the experiment, build its parts, and report a user's mistake in one line."""

import argparse
import errno
import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dataset import build_dataset, cache, packed
from model import build_model
from model.published import load_backbone_weights, load_published
from util import checkpoint, dist, legacy, signals, status
from util.config import apply_overrides, check_config, read_experiment
from util.log import cores, log
from util.schema import Config

OURS = ("model", "dataset", "util", "tool")


@dataclass(frozen=True)
class RunPaths:
    """Where a run's files are: derived from the experiment's own path, never written in YAML."""

    folder: Path
    result: Path
    checkpoint: Path | None = None

    @property
    def last(self) -> Path:
        return self.folder / "model" / "last.pth"

    @property
    def best(self) -> Path:
        return self.folder / "model" / "best.pth"


def parser(description: str, needs_config: bool = True) -> argparse.ArgumentParser:
    """The arguments that every command with an experiment has."""
    out = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--config", required=needs_config, metavar="FILE", help="the experiment, a YAML file")
    out.add_argument("--exp", metavar="DIR", help="folder of the run (default: exp/DATASET/EXPERIMENT)")
    out.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="changes to the experiment, e.g. train.epochs=2"
    )
    return out


def load_experiment(path: str, overrides: list[str], folder: str | None = None) -> tuple[Config, RunPaths]:
    """The checked config and the folders of the experiment in the YAML file `path`, old style or new.

    Raises:
        ConfigError: see `util.config.load_config`.
    """
    raw = read_experiment(path)
    if legacy.is_legacy(raw):
        pairs, overrides = legacy.split_overrides(overrides)
        raw, old, notes = legacy.translate(raw, pairs, path)
        for note in notes:
            log.info("%s: %s", path, note)
        config = check_config(apply_overrides(raw, overrides), path)
        run = Path(folder) if folder else old.folder
        result = run / "result" if folder or old.result is None else old.result
        return config, RunPaths(run, result, None if folder else old.checkpoint)
    config = check_config(apply_overrides(raw, overrides), path)
    run = Path(folder) if folder else run_folder(Path(path), config.data.name)
    return config, RunPaths(run, run / "result")


def run_folder(path: Path, dataset: str) -> Path:
    """exp/cityscapes/sfnet101 for config/cityscapes/cityscapes_sfnet101.yaml."""
    group = path.resolve().parent.name
    prefix = f"{group}_"
    if path.stem.startswith(prefix):
        return Path("exp") / group / path.stem[len(prefix) :]
    return Path("exp") / dataset / path.stem.removeprefix(f"{dataset}_")


def dataset_of(config: Config, split: str, transform: Callable | None = None):
    """The data set of one split, as the experiment describes it."""
    data = config.data
    list_file = {"train": data.train_list, "val": data.val_list, "test": data.test_list}[split]
    dataset = build_dataset(
        data.name, data.root, list_file, split, transform, config.seed, data.classes, data.colors, data.label_map
    )
    if data.packed is not None:
        read_packed(dataset, data.packed)
    return dataset


def read_packed(dataset, folder: str) -> None:
    """Lets the data set read from the packed data in `folder`; "auto": those in its root, if any.

    A split that is not packed is read from its files, but for that of a training from a folder that was named.

    Raises:
        FileNotFoundError, ValueError: the packed data are missing, damaged, or do not fit the files.
    """
    place = dataset.root / "packed" if folder == "auto" else Path(folder)
    if packed.index_file(place, dataset.split).is_file() or (folder != "auto" and dataset.split == "train"):
        dataset.source = packed.Packed(place, dataset)
        log.info("%s: packed data %s", dataset.split, dataset.source.path)
    else:
        log.info("%s: no packed data in %s, the files are read", dataset.split, place)


def keep_in_memory(config: Config, sets: list) -> None:
    """Reads the data sets into memory, if `data.cache` says so.

    Raises:
        ValueError: the memory does not suffice, with the arithmetic.
    """
    if config.data.cache == "memory":
        size = cache.keep_in_memory(sets, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        log.info("data.cache: reading %d pictures, %.1f GiB decoded, into memory", sum(map(len, sets)), size / 2**30)
        for part in sets:
            part.source.prepare(loader_workers(config))


def loader_workers(config: Config) -> int:
    """`data.workers`, but no more than this process's share of the machine's cores."""
    return min(config.data.workers, max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def network_of(config: Config, num_classes: int) -> torch.nn.Module:
    """The untrained network of the experiment."""
    options = dict(config.model.options)
    return build_model(config.model.name, num_classes, config.model.backbone, **options)


def load_initial_weights(model: torch.nn.Module, config: Config) -> None:
    """Fills the backbone from `model.weights` and the whole network from `model.init`.

    Raises:
        FileNotFoundError: a file is missing; says where it comes from and how to start without it.
        ValueError: the weights do not fit.
    """
    weights, init = config.model.weights, config.model.init
    if weights != "none" and not init:
        if not Path(weights).is_file():
            raise FileNotFoundError(
                f"model.weights: {weights} is missing. initmodel/README.md says where each file of initial weights "
                "comes from; put it there, or start from random weights with model.weights=none"
            )
        log.info("backbone from %s: %s", weights, load_backbone_weights(model.backbone, checkpoint.load(weights)))
    if init:
        state = checkpoint.load(init)
        if checkpoint.is_ours(state):
            skipped = checkpoint.load_strictly(model, state["model"], init, config.model.init_skip)
            log.info("network from %s%s", init, f", but {len(skipped)} parameters" if skipped else "")
        else:
            log.info("network from %s: %s", init, load_published(model, state, config.model.init_skip))


def load_network(path: Path, config: Config, num_classes: int) -> torch.nn.Module:
    """The trained network in a checkpoint file: one of ours, which rebuilds itself, or a published one.

    Raises:
        FileNotFoundError, ValueError: the file is missing, damaged, or of another network or class count.
    """
    state = checkpoint.load(path)
    if not checkpoint.is_ours(state):
        model = network_of(config, num_classes)
        log.info("published checkpoint %s: %s", path, load_published(model, state))
        return model
    checkpoint.check_ours(state, path)
    spec = state["spec"]
    if spec["num_classes"] != num_classes:
        raise ValueError(
            f"{path}: trained for {spec['num_classes']} classes ({', '.join(state.get('classes', ())[:4])}, ...), "
            f"but data set {config.data.name} has {num_classes}"
        )
    return rebuild(state, path)


def rebuild(state: dict, path: str | Path) -> torch.nn.Module:
    """The trained network of a checkpoint of ours.

    Raises:
        ValueError: the checkpoint does not say which network it holds, or its weights do not fit.
    """
    checkpoint.check_ours(state, path)
    spec = state["spec"]
    try:
        model = build_model(spec["name"], spec["num_classes"], spec["backbone"], **spec["options"])
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path}: its network cannot be built ({error})") from error
    checkpoint.load_strictly(model, state["model"], str(path))
    return model


def command(main: Callable[[], int]) -> None:
    """Runs a command and exits with its status; a user's mistake is one message and status 2, without traceback.

    The loss of another process is one message too, and status `dist.PEER_LOST`.
    """
    code = 1
    try:
        code = main()
        if code in signals.STATUS.values():
            signals.ignore()
        status.end("stopped" if code in signals.STATUS.values() else "finished")
    except BaseException as error:
        known = _status_of(error)
        if known is None:
            _unexpected(error)
            raise
        code = known
    finally:
        dist.close(_told[-1] if code and _told else dist.DONE)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code == dist.PEER_LOST:
        os._exit(code)  # a thread may be inside an operation that never returns
    sys.exit(code)


def _status_of(error: BaseException) -> int | None:
    """Tells what ended a command, in one message, and gives its exit status; None for a defect of ours."""
    stop = signals.cause(error)  # it may come up in the middle of other code, whose clean-up then fails
    if stop is not None:
        _report(f"stopped by {stop} before there was anything to save; the same command starts again", "stopped")
        return stop.status
    if isinstance(error, KeyboardInterrupt):
        _report("interrupted; the same command continues from the last checkpoint", "stopped")
        return signals.INTERRUPTED
    if isinstance(error, torch.OutOfMemoryError):
        _report(f"{str(error).splitlines()[0]} Use a smaller train.batch_size or data.crop, train.accumulate, or amp")
        return 2
    if isinstance(error, (ValueError, OSError, FloatingPointError)):
        if not _expected(error):
            return None
        if not getattr(error, "told", False):  # the process it happened in has told it
            _report(_message(error))
        return 2
    if isinstance(error, RuntimeError):
        signals.ignore()  # of the launcher, which ends what is left: first say why
        reason = dist.lost_peer(error)
        if reason is not None:
            _report(reason)
            return dist.PEER_LOST
    return None


def lost(reason: str) -> None:
    """Tells that another process is lost; called from a thread of a process that is about to end."""
    _report(reason)
    sys.stderr.flush()


_told: list[str] = []  # what this process ends with, for the others


def _unexpected(error: BaseException) -> None:
    """Records a defect; its traceback goes to the console as well."""
    _log_file_only(traceback.format_exc())
    text = f"{type(error).__name__}: {(str(error).strip() or '(no message)').splitlines()[0]}"
    _told.append(text)
    status.end("failed", text)


def _expected(error: BaseException) -> bool:
    """Whether our own code raised it, or the operating system about a file: a message, not a defect."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.ENOENT, errno.EROFS):
        return True
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    name = last.tb_frame.f_globals.get("__spec__") or last.tb_frame.f_globals.get("__name__", "")
    return getattr(name, "name", name).partition(".")[0] in OURS


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return error.strerror if ":" in error.strerror else "no space left on the disk"
    return str(error)


def _report(text: str, state: str = "failed") -> None:
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    prefix = f"error (rank {os.environ['RANK']} on {socket.gethostname()}): " if several else "error: "
    print(prefix + text, file=sys.stderr, flush=True)
    _log_file_only(prefix + text)
    _told.append(text)
    status.end(state, text)


def _log_file_only(text: str) -> None:
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(log.makeRecord(log.name, logging.ERROR, "", 0, text, (), None))
