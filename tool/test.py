"""Scores the network of one experiment and writes its predictions.

    python -m tool.test --config config/street/street_sfnet_mobile.yaml
    python -m tool.test --config config/cityscapes/cityscapes_sfnet101.yaml --checkpoint FILE test.scales=[0.5,1,1.75]
    python -m tool.test --checkpoint FILE data.root=/data/cityscapes

FILE is a checkpoint of ours, a published one or an export, whose preprocessing and classes are used. Without --config
it is scored by what it knows itself. The results of a run lie in its result/SPLIT-PROTOCOL, those of a FILE in
FILE.result: report.html, metrics.json, metrics.csv, table.txt, confusion.png, per_image.csv, the predictions gray/ and
color/, and pictures/ photo | truth | prediction.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from dataset import build_eval_loader
from dataset.base import Sample
from model.inference.export import ExportedNetwork
from model.inference.formats import ExportedFile
from model.inference.optimize import optimize_for_inference
from tool.shared import cli, plugins
from tool.shared.data import check_labels, dataset_of, loader_workers
from tool.shared.network import build_predictor
from tool.shared.plugins import load
from tool.shared.published import BLACK
from tool.shared.results import Place, beside, place_of, write
from tool.shared.trained import Trained, experiment_of, open_trained
from util import UserError, dist
from util.config.load import Experiment, RunPaths
from util.config.schema import Config, TestConfig
from util.dist import signals
from util.record import lock, status
from util.record.files import refuse_links, write_bytes
from util.record.log import log, open_log, printable
from util.record.memory import keep_memory
from util.report.details import Details, Measured
from util.report.result import PredictionWriter, output_path, score_predictions, write_submission
from util.report.visual import png, triptych
from util.score.evaluate import Timing, compare, evaluate, shard
from util.score.metric import ConfusionMatrix
from util.score.predict import Predictor
from util.score.void import VoidConfusion
from util.train.compile import obstacle
from util.train.loop import AMP_TYPES


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser("tool.test", __doc__, needs_config=False)
    parser.add_argument("--checkpoint", metavar="FILE", help="weights to score (default: the run's own)")
    plugins.add_argument(parser)
    args = parser.parse_intermixed_args(argv)
    open_log(None)
    plugins.use(args.plugin)
    if not args.config and not args.checkpoint:
        parser.error("an experiment or a checkpoint is needed: --config FILE, or --checkpoint FILE data.root=FOLDER")
    with signals.Stop():
        state = None
        if args.config:
            experiment = load(args.config, args.overrides, args.exp)
        else:
            experiment, state = experiment_of(args.checkpoint, args.overrides, args.exp)
            if any(override.startswith(("model.", "data.classes")) for override in args.overrides):
                state = None  # a published network depends on them
        if args.checkpoint and not args.exp and Path(args.checkpoint).is_file():
            experiment = replace(experiment, run=beside(args.checkpoint))
        score(experiment, Path(args.checkpoint) if args.checkpoint else None, state)
    return 0


def score(experiment: Experiment, given: Path | None, state: dict | None) -> None:
    """Score a checkpoint, or predictions, on the data of the experiment.

    Args:
        given: the checkpoint; None for the run's own.
        state: what was read of it already.
    """
    config, run = experiment.config, experiment.run
    device = dist.init(cli.lost)
    open_log(run.folder / "test.log")
    for note in experiment.notes:
        log.info(note)
    if device.type == "cpu" and config.test.keep_memory:
        keep_memory()
    data = dataset_of(config, config.test.split)
    indices = selection(config, len(data))
    place = place_of(experiment, indices, len(data))
    open_result(experiment, place)
    for warning in dist.main_first(lambda: check_labels(config, [data], run)):
        log.info("data: %s", warning)
    if config.test.submission:
        data.to_label_ids(np.zeros((1, 1), np.uint8))  # refused before anything is predicted
    labelled = [i for i in indices if data.samples[i][1] is not None]
    if labelled and len(labelled) < len(indices):
        log.info("%d of %d pictures have no label: predicted, not scored", len(indices) - len(labelled), len(indices))
    matrix = VoidConfusion if config.test.void == "class" else ConfusionMatrix
    confusion = matrix(len(data.classes), data.ignore_label, device) if labelled else None
    record = Recorder(config, place, data, [data.sample_name(i) for i in indices], bool(labelled))
    if config.test.has_prediction:
        score_existing(experiment, place, data, indices, confusion, record)
        return
    file = find_checkpoint(given, config, run)
    trained = open_trained(file, experiment, data, state)
    config, model = trained.config, made_ready(trained.network.to(device), trained.config.test)
    predictor = predictor_of(config, model, trained.num_outputs, device, trained.outputs)
    log.info("%s: %d pictures of %s %s; %s", file, len(indices), data.name, config.test.split, predictor)
    mine = shard(indices, dist.rank(), dist.world_size())
    samples = counted(build_eval_loader(data, mine, loader_workers(config)), len(indices))
    scores, timing = evaluate(predictor, samples, confusion, record)
    dist.barrier()  # every process has written its pictures
    protocol = predictor.describe() | trained.describe() | {"engine": engine_of(model)}
    if predictor.windows == "fast" and labelled and config.test.compare:
        protocol["compared"] = compare_ways(trained, model, data, labelled, device)
    measured = record.measured()
    if dist.is_main():
        conclude(experiment, place, data, indices, confusion, scores, timing, protocol, file, measured, record.colors)


def open_result(experiment: Experiment, place: Place) -> None:
    """Take the folder of a result, and begin its status.json.

    Raises:
        UserError: another evaluation has it, or it is reached through a symbolic link.
    """
    dist.main_first(lambda: refuse_links(place.predictions, experiment.run.folder))
    unguarded = dist.main_first(lambda: lock.take(place.scores, "evaluation"))
    if unguarded and dist.is_main():
        log.warning("%s: its file system has no locks (%s); start no second evaluation there", place.scores, unguarded)
    status.start(place.scores, "test")
    status.note(command=experiment.command)


def counted(samples: Iterable[Sample], total: int) -> Iterator[Sample]:
    """Yield this process's samples; note how many of `total` are done."""
    status.note(state="running", total=total)
    for number, sample in enumerate(samples):
        status.count(min(number * dist.world_size(), total))
        yield sample
    status.note(step=total)


def made_ready(model: nn.Module, test: TestConfig) -> nn.Module:
    """Optimise or export the trained network, as `test.optimize` and `test.engine` say.

    Raises:
        UserError: it is exported already.
    """
    if isinstance(model, ExportedFile):
        asked = [f"test.{key}={getattr(test, key)}" for key in ("engine", "optimize", "amp")]
        if asked != ["test.engine=torch", "test.optimize=none", "test.amp=off"]:
            raise UserError(
                f"{model.file} is exported: leave out {', '.join(asked)}; its engine and precision are fixed"
            )
        return model
    if test.engine != "torch":
        log.info("network: exported to %s, which runs on the CPU", test.engine)
        return ExportedNetwork(model, test.engine, AMP_TYPES[test.amp])
    if test.optimize == "none":
        return model
    reason = obstacle(next(model.parameters()).device) if test.optimize == "compile" else None
    if reason is not None:
        log.warning("test.optimize=compile: not compiled, %s", reason)
    compiled = test.optimize == "compile" and reason is None
    network = optimize_for_inference(model, AMP_TYPES[test.amp], compiled)
    log.info("network: %s", network.summary)
    return network


def engine_of(model: nn.Module) -> dict[str, object]:
    """Return what ran the network, for metrics.json.

    It is logged where the network is exported.
    """
    if not isinstance(model, ExportedNetwork | ExportedFile):
        return {"name": "torch", "version": torch.__version__}
    engine = model.describe()
    log.info("engine: %s", engine)
    return engine


def predictor_of(
    config: Config, model, num_classes: int, device, outputs: Sequence[int] | None = None, windows: str | None = None
) -> Predictor:
    """Build the predictor of the experiment's protocol; windows: instead of its own."""
    test, data = config.test, config.data
    if windows is not None:
        test = test.model_copy(update={"windows": windows})
    channels_last = config.train.channels_last
    return build_predictor(
        model, num_classes, data.mean, data.std, data.channel_order, test, device, channels_last, outputs
    )


def compare_ways(trained: Trained, model, data, indices, device) -> dict:
    """Return what windows fast changes, on the first pictures.

    Of the selection; on all processes.
    """
    config = trained.config
    chosen = shard(indices[: config.test.compare], dist.rank(), dist.world_size())
    fast, exact = (
        predictor_of(config, model, trained.num_outputs, device, trained.outputs, windows)
        for windows in ("fast", "exact")
    )
    samples = build_eval_loader(data, chosen, loader_workers(config))
    found = compare(fast, exact, samples, trained.num_outputs, data.ignore_label)
    log.info("windows fast against exact: %s", found)
    return found


def selection(config: Config, count: int) -> range:
    """Return the pictures of the list that are scored.

    Raises:
        UserError: test.index_start lies behind the end of the list.
    """
    start, step = config.test.index_start, config.test.index_step
    if start >= count:
        raise UserError(f"test.index_start {start}: the list has {count} pictures, 0..{count - 1}")
    return range(start, min(start + step, count) if step else count)


def find_checkpoint(given: Path | None, config: Config, run: RunPaths) -> Path:
    """Return the file to score.

    The one given, the one an old YAML names, or the run's last or best.

    Raises:
        FileNotFoundError: there is none yet.
    """
    if given is not None:
        return given
    if run.checkpoint is not None and run.checkpoint.is_file():
        return run.checkpoint
    own = run.best if config.test.checkpoint == "best" else run.last
    if own.is_file():
        if run.checkpoint is not None:
            log.info("%s does not exist; the run's own %s is scored", run.checkpoint, own)
        return own
    raise FileNotFoundError(
        f"{run.checkpoint or own}: no such checkpoint. Train first (sh tool/train.sh ...), or name a file: "
        "python -m tool.test --config ... --checkpoint FILE"
    )


class Recorder:
    """Keeps what is wanted of each prediction.

    The files gray/ and color/, the first few as photo | truth | prediction, and what the report shows.
    """

    def __init__(self, config: Config, place: Place, data, names: list[str], labelled: bool):
        self.folder = place.scores / "pictures"
        self.shown = set(names[: config.test.pictures])
        test, void = config.test, config.test.void == "class"
        self.colors, self.classes = data.colors, [*data.classes]
        if void:
            self.colors, self.classes = np.vstack([data.colors, [BLACK]]).astype(np.uint8), [*data.classes, "void"]
        gray, color = (test.save_gray or test.submission), test.save_color
        if test.has_prediction:
            gray = color = False
            self.shown = set()
        self.write = PredictionWriter(place.predictions, self.colors, gray, color)
        self.details = Details(names, self.colors, void) if test.report and labelled else None

    def __call__(self, sample: dict, prediction) -> None:
        self.write(sample, prediction)
        if self.details is not None and "label" in sample:
            self.details(sample, prediction)
        if sample["name"] in self.shown:
            truth = sample["label"].numpy() if "label" in sample else None
            image = sample["image"].permute(1, 2, 0).numpy()
            picture = triptych(image, truth, prediction, self.colors, self.classes)
            write_bytes(output_path(self.folder, sample["name"]), png(picture), parents=True)

    def measured(self, alone: bool = False) -> Measured | None:
        """Join what all processes have measured for the report; None without one."""
        return None if self.details is None else self.details.gather(alone)


def conclude(
    experiment: Experiment,
    place: Place,
    data,
    indices,
    confusion,
    scores,
    timing: Timing,
    protocol: dict | None,
    file: Path | None,
    measured: Measured | None,
    colors: np.ndarray,
) -> None:
    """Write and print the scores.

    Also the test server's zip if it is asked for.
    """
    test = experiment.config.test
    if scores is None:
        log.info("%d pictures without labels predicted: %s", timing.num_images, place.predictions)
    else:
        timing = replace(timing, num_images=sum(data.samples[i][1] is not None for i in indices))
        protocol = {"name": test.protocol, "split": test.split, **protocol} if protocol else None
        result = experiment, data, colors, confusion, scores, timing, protocol, file, measured
        print(printable(write(place, *result)), flush=True)
        status.note(mIoU=None if math.isnan(scores.mIoU) else scores.mIoU)
        seconds = timing.seconds_per_image  # nan where predictions were on disk
        log.info(
            "%s %s: mIoU %.4f mAcc %.4f allAcc %.4f on %d pictures%s",
            data.name,
            test.split,
            scores.mIoU,
            scores.mAcc,
            scores.allAcc,
            timing.num_images,
            "" if math.isnan(seconds) else f", {seconds:.3f} s a picture",
        )
    if test.submission:
        names = [data.sample_name(i) for i in indices]
        path = place.scores / "submission.zip"
        write_submission(path, ((name, data.to_label_ids(read_gray(place.predictions, name))) for name in names))
        log.info("for the test server: %s", path)
    log.info("results: %s", place.scores)


def read_gray(folder: Path, name: str):
    return cv2.imread(str(folder / "gray" / f"{name}.png"), cv2.IMREAD_UNCHANGED)


def score_existing(experiment: Experiment, place: Place, data, indices, confusion, record: Recorder) -> None:
    """Score the predictions that lie in gray/ already; rank 0 alone.

    Raises:
        UserError: the split has no labels.
    """
    config = experiment.config
    if confusion is None:
        raise UserError(f"test.has_prediction: the split {config.test.split} has no labels to score against")
    if not dist.is_main():
        return
    labelled = [i for i in indices if data.samples[i][1] is not None]
    samples = counted(build_eval_loader(data, labelled, loader_workers(config)), len(labelled))
    number = score_predictions(place.predictions, samples, confusion, record)
    timing = Timing(number, float("nan"), float("nan"))
    measured, scores = record.measured(alone=True), confusion.result()
    conclude(experiment, place, data, indices, confusion, scores, timing, None, None, measured, record.colors)


if __name__ == "__main__":
    cli.command(main, on_memory="use a smaller test.window or test.window_batch")
