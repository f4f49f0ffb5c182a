"""Trains the network of one experiment.

    python -m tool.train --config config/street/street_sfnet_mobile.yaml
    python -m tool.train --config config/cityscapes/cityscapes_sfnet101.yaml train.epochs=2 data.root=/data/cityscapes

The same command continues a run that has a checkpoint. `sh tool/train.sh DATASET EXPERIMENT` starts it on all GPUs
and evaluates the result. Old YAML files (sections DATA, TRAIN, TEST) are read as they are.
A loss that is not finite leaves a record, and `python -m tool.replay RECORD` says where the first such number came up.
"""

import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset import build_eval_loader
from dataset.base import Sample, SegDataset
from dataset.load.loader import Batch
from tool.shared import cli, plugins
from tool.shared.data import batches_on_device, build_batches, build_data, data_of, loader_workers, with_class_weights
from tool.shared.network import build_predictor, build_training, check_network, make_deterministic, whole_pictures
from tool.shared.trained import check_init
from util import dist
from util.checkpoint.store import CheckpointWriter
from util.config.load import Experiment, RunPaths, describe
from util.config.schema import Config
from util.dist import signals
from util.record import history, lock, status
from util.record.events import Events
from util.record.files import refuse_links, write_text
from util.record.log import log, open_log, write_json
from util.record.machine import environment
from util.record.memory import keep_memory
from util.record.trackers import Tracker, Writer, Writers, check_installed
from util.report.visual import triptych
from util.score.curves import ProbabilityScores
from util.score.evaluate import evaluate, shard
from util.score.metric import ConfusionMatrix, Scores
from util.train.loop import Training, train_epoch
from util.train.losslog import NotFinite
from util.train.progress import Progress
from util.train.replay import leave_record
from util.train.resume import Data, resume, save

PICTURES_SHOWN = 4  # predictions in TensorBoard after each validation


def main(argv: list[str] | None = None) -> int:
    args = cli.parser("tool.train", __doc__).parse_intermixed_args(argv)
    open_log(None)
    with signals.Stop() as stop:
        # Experiment, processes and folder of the run
        experiment = plugins.load(args.config, args.overrides, args.exp)
        config, run = experiment.config, experiment.run
        device = dist.init(cli.lost)
        check_installed(config.train.trackers)
        open_folder(run)
        for note in experiment.notes:
            log.info(note)
        if device.type == "cpu":
            keep_memory()
            if config.train.amp == "fp16":
                log.info("train.amp=fp16: few CPUs have fast half-precision gradients; bf16 may be 100 times as fast")
        status.start(run.folder)
        status.note(command=experiment.command)
        # Data, network and optimiser, as the newest checkpoint has them
        check_network(config)
        train_set, val_set = build_data(config, run)
        config = with_class_weights(config, train_set, run)
        make_deterministic(config)
        check_init(experiment, train_set.classes)
        training = build_training(config, train_set, device)
        data = data_of(train_set, val_set)
        checkpoints = resume(training, run.last.parent, data)
        writer = open_run(experiment, device, training.step)
        loader = build_batches(training, train_set, run)
        # Epochs
        try:
            code = fit(training, loader, val_set, checkpoints, data, writer, stop)
        except NotFinite as error:
            raise with_replay(error, config, run, checkpoints) from None
        writer.close()
    if not code:
        log.info("finished: %s", run.last)
    return code


def open_folder(run: RunPaths) -> None:
    """Take the run's folder, and open the log there.

    No second training may write into it.

    Raises:
        UserError: another training has it.
    """
    unguarded = dist.main_first(lambda: lock.take(run.folder))
    for name in ("model", "replay"):
        dist.main_first(lambda name=name: refuse_links(run.folder / name, run.folder))
    open_log(run.folder / "train.log")
    if unguarded and dist.is_main():
        log.warning("%s: its file system has no locks (%s); start no second training in it", run.folder, unguarded)


def with_replay(error: NotFinite, config: Config, run: RunPaths, checkpoints: CheckpointWriter) -> FloatingPointError:
    """Add to the error the command that replays it.

    Rank 0 writes the record of it, and is the only rank that prints the error.
    """
    file = dist.main_first(lambda: leave_record(error, run.folder, config, checkpoints))
    own = plugins.words(config.model_dump(mode="json"))
    return dist.main_tells(FloatingPointError(f"{error}. Where it came up: python -m tool.replay {file}{own}"))


def open_run(experiment: Experiment, device: torch.device, step: int) -> Writers:
    """Write config.yaml and env.json into the run's folder; return what records it.

    That is TensorBoard's file, and `train.trackers`. Off rank 0 it writes nothing. step: where the run continues;
    TensorBoard leaves out what was recorded after it.
    """
    folder, config = experiment.run.folder, experiment.config
    if not dist.is_main():
        return Writers()
    write_text(folder / "config.yaml", describe(experiment))
    write_json(folder / "env.json", environment(device) | {"command": experiment.command})
    log.info("curves: tensorboard --logdir %s (python -m pip install tensorboard)", shlex.quote(str(folder)))
    about = {"project": "segmentation", "title": experiment.name, "config": config.model_dump(mode="json")}
    trackers = [Tracker(name, folder, about, continued=step > 0) for name in config.train.trackers]
    return Writers(Events(folder, purge_step=step + 1 if step else None), *trackers)


def fit(
    training: Training,
    loader: Iterable[Batch],
    val_set: SegDataset | None,
    checkpoints: CheckpointWriter,
    data: Data,
    writer: Writer,
    stop: signals.Stop,
) -> int:
    """Train, validate and save what is left; return the exit status."""
    train = training.config.train
    progress = Progress(training.step, train.epochs * training.steps_per_epoch, train.batch_size)
    best = training.best if training.best >= 0 else None
    status.note(step=training.step, total=progress.total, epoch=training.epochs_done, epochs=train.epochs, best=best)
    if training.epochs_done >= train.epochs:
        log.info("nothing to do: %d epochs are done", train.epochs)
        return 0
    batches = batches_on_device(training, loader)
    stop.hold()
    status.note(state="running")
    code = 0
    try:
        for epoch in range(training.epochs_done, train.epochs):
            # Train
            for step in train_epoch(training, batches, epoch, progress, writer):
                code = stop.poll()
                if code:
                    break
                if train.save_steps and step % train.save_steps == 0:
                    save(training, checkpoints, data)
            # Validate, and save where it is due
            code = code or end_epoch(training, epoch, val_set, checkpoints, data, writer, stop)
            if code:
                save(training, checkpoints, data, wait=True)
                log.info("stopped by a signal at step %d, which is saved: the same command continues", training.step)
                return code
            progress.pause()
        dist.main_first(checkpoints.wait)
    finally:
        progress.close()
        checkpoints.close()
    return 0


def end_epoch(
    training: Training,
    epoch: int,
    val_set: SegDataset | None,
    checkpoints: CheckpointWriter,
    data: Data,
    writer: Writer,
    stop: signals.Stop,
) -> int:
    """Validate and save where it is due.

    Returns 0, or the exit status if a signal came meanwhile: then the epoch is not done.
    """
    train, improved = training.config.train, False
    last = epoch + 1 == train.epochs
    if val_set is not None and ((epoch + 1) % train.val_every == 0 or last):
        status.note(state="validating")
        dist.at(f"the validation after epoch {epoch + 1}")
        scores = validate(training, val_set, epoch, writer, stop)
        if scores is None:
            return stop.agree()
        if dist.is_main():
            note_scores(training, epoch, scores, val_set.classes, checkpoints.folder.parent)
        improved = scores.mIoU > training.best
        training.best = max(training.best, scores.mIoU)
        status.note(state="running", best=training.best)
    training.epochs_done = epoch + 1
    if improved or last or (epoch + 1) % train.save_every == 0:
        save(training, checkpoints, data, improved)
    return 0


def note_scores(training: Training, epoch: int, scores: Scores, classes: tuple[str, ...], folder: Path) -> None:
    """Add the scores of a validation to the run's history.csv."""
    values = {"step": training.step, "loss": training.losses.newest.get("loss")}
    values |= {name: getattr(scores, name) for name in ("mIoU", "mAcc", "allAcc")}
    values |= {f"IoU {name}": iou for name, iou in zip(classes, scores.iou, strict=True)}
    history.add(folder, epoch + 1, values)


@contextmanager
def any_size(compiled: bool) -> Iterator[None]:
    """Compile and autotune nothing inside this context: validation pictures have many sizes."""
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


def validate(training: Training, val_set: SegDataset, epoch: int, writer: Writer, stop: signals.Stop) -> Scores | None:
    """Score whole images at `train.val_scale`; None after a signal."""
    config = training.config
    dist.share_buffers(training.eval_model)  # every process has seen other pictures
    predictor = build_predictor(
        training.eval_model,
        len(val_set.classes),
        config.data.mean,
        config.data.std,
        config.data.channel_order,
        whole_pictures(config.train.val_scale, config.train.amp),
        training.device,
        config.train.channels_last,
    )
    confusion = ConfusionMatrix(len(val_set.classes), val_set.ignore_label, training.device)
    curves = None
    if config.train.val_curves:
        curves = ProbabilityScores(len(val_set.classes), val_set.ignore_label, training.device)
    indices = shard(range(len(val_set)), dist.rank(), dist.world_size())
    shown = {val_set.sample_name(i) for i in indices[:PICTURES_SHOWN]} if dist.is_main() else set()

    def show(sample: Sample, prediction: np.ndarray) -> None:
        if sample["name"] in shown:
            image, truth = sample["image"].permute(1, 2, 0).numpy(), sample["label"].numpy()
            picture = triptych(image, truth, prediction, val_set.colors, val_set.classes)
            writer.add_image(f"val/{sample['name']}", picture, training.step)

    def add_probabilities(sample: Sample, probabilities: Tensor) -> None:
        if curves is not None:
            curves.update(probabilities, sample["label"])

    samples = build_eval_loader(val_set, indices, loader_workers(config))
    with any_size(config.train.compile):
        seen = takewhile(lambda _: not stop.noted, samples)
        result, _ = evaluate(predictor, seen, confusion, show, None if curves is None else add_probabilities)
    if stop.agree():
        return None
    if curves is not None:
        curves.reduce()
    log.info(
        "validation after epoch %d: mIoU %.4f mAcc %.4f allAcc %.4f%s",
        epoch + 1,
        result.mIoU,
        result.mAcc,
        result.allAcc,
        " (best so far)" if result.mIoU > training.best else "",
    )
    record_validation(writer, result, curves, val_set.classes, training.step)
    return result


def record_validation(
    writer: Writer, scores: Scores, curves: ProbabilityScores | None, classes: Sequence[str], step: int
) -> None:
    """Record means, IoU of each class, cross-entropy, precision over recall."""
    values = {f"val/{name}": getattr(scores, name) for name in ("mIoU", "mAcc", "allAcc")}
    values |= {f"IoU/{name}": iou for name, iou in zip(classes, scores.iou, strict=True) if not math.isnan(iou)}
    if curves is not None and curves.pixels:
        values["val/loss"] = curves.cross_entropy
    for name, value in values.items():
        writer.add_scalar(name, value, step)
    for index, name in enumerate(classes):
        curve = None if curves is None else curves.curve(index)
        if curve is not None:
            writer.add_curve(f"curve/{name}", curve, step)


if __name__ == "__main__":
    cli.command(
        main,
        on_memory="use a smaller train.batch_size or augment.crop, or train.accumulate or train.amp",
        on_interrupt="continues from the last checkpoint",
    )
