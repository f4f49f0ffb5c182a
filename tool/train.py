"""Trains the network of one experiment.

    python -m tool.train --config config/street/street_sfnet_mobile.yaml
    python -m tool.train --config config/cityscapes/cityscapes_sfnet101.yaml train.epochs=2 data.root=/data/cityscapes

The same command continues a run that has a checkpoint. `sh tool/train.sh DATASET EXPERIMENT` starts it on all GPUs
and evaluates the result. Old YAML files (sections DATA, TRAIN, TEST) are read as they are.

    python -m tool.train --replay exp/street/sfnet_mobile/replay/step_00000123.json

runs the steps up to a loss that was not finite again, and says where the first such number came up (tool/replay.py).
"""

import os
from contextlib import contextmanager, nullcontext
from itertools import takewhile

import torch
from tensorboardX import SummaryWriter
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dataset import build_eval_loader, build_loader
from dataset.check import check_dataset, compare_splits, facts
from dataset.device import DeviceTransform
from dataset.skip import Skips
from dataset.transform import TrainTransform
from dataset.uniform import ClassUniform, find_points
from model.recompute import recompute_blocks
from model.regions import compile_regions
from tool import common
from util import dist, lock, random_state, signals, status
from util.config import dump_config
from util.evaluate import evaluate, shard
from util.log import Progress, environment, log, open_log, write_json
from util.loop import AMP_TYPES, NotFinite, Training, train_epoch
from util.loss import SegLoss
from util.memory import keep_memory
from util.metric import ConfusionMatrix, Scores
from util.optim import build_optimizer, build_schedule
from util.predict import Predictor
from util.prefetch import Prefetch
from util.replay import leave_record
from util.resume import Data, resume, save
from util.schema import Config
from util.store import Store
from util.visual import triptych

PICTURES_SHOWN = 4  # predictions in TensorBoard after each validation


def main(argv: list[str] | None = None) -> int:
    parser = common.parser(__doc__, needs_config=False)
    parser.add_argument("--replay", metavar="FILE", help="what a run left that stopped at a loss that is not finite")
    args = parser.parse_intermixed_args(argv)
    if (args.config is None) == (args.replay is None):
        parser.error("name either an experiment (--config FILE) or what is to be replayed (--replay FILE)")
    open_log(None)
    if args.replay:
        from tool.replay import replay  # here, since it is built from the parts of this file

        return replay(args.replay, args.overrides)
    with signals.Stop() as stop:
        config, run = common.load_experiment(args.config, args.overrides, args.exp)
        device = dist.init(common.lost)
        open_folder(run)
        if device.type == "cpu":
            keep_memory()
            if config.train.amp == "fp16":
                log.info("train.amp=fp16: few CPUs have fast half-precision gradients; bf16 may be 100 times as fast")
        status.start(run.folder)
        train_set, val_set = build_data(config, run)
        make_deterministic(config)
        training = build_training(config, train_set, device)
        checkpoints = Store(run.last.parent, config.train.keep_last, config.train.keep_every)
        data = data_of(train_set, val_set)
        resume(training, checkpoints, data)
        writer = open_run(config, run, device, training.step)
        loader = build_batches(training, train_set, run)
        try:
            code = fit(training, loader, val_set, checkpoints, data, writer, stop)
        except NotFinite as error:
            raise explained(error, config, run, checkpoints) from None
        writer.close()
    if not code:
        log.info("finished: %s", run.last)
    return code


def open_folder(run: common.RunPaths) -> None:
    """Takes the run's folder, so that no second training writes into it, and opens the log there.

    Raises:
        ValueError: another training has it.
    """
    unguarded = dist.main_first(lambda: lock.take(run.folder))
    open_log(run.folder / "train.log")
    if unguarded and dist.is_main():
        log.warning("%s: its file system has no locks (%s); start no second training in it", run.folder, unguarded)


def explained(error: NotFinite, config: Config, run: common.RunPaths, checkpoints: Store) -> FloatingPointError:
    """The error with the command that looks for its cause, for which rank 0 leaves a record; that one tells it."""
    file = dist.main_first(lambda: leave_record(error, run.folder, config, checkpoints))
    told = FloatingPointError(f"{error}. Where it came up: python -m tool.train --replay {file}")
    told.told = not dist.is_main()
    return told


def build_data(config: Config, run: common.RunPaths):
    """Training and validation set, checked; rank 0 reads the labels for all."""
    data = config.data
    transform = TrainTransform(
        data.crop, data.scale, data.rotate, data.rotate_prob, data.blur_prob, data.flip_prob, data.jitter,
        data.mean, photometric=data.photometric,
    )
    if data.augment == "device":
        transform = DeviceTransform(transform)
    train_set = common.dataset_of(config, "train", transform)
    val_set = common.dataset_of(config, "val") if config.train.val_every else None
    train_set.skip_errors = data.on_error == "skip"
    sets = [part for part in (train_set, val_set) if part is not None]
    for part in sets:
        log.info("%s: %d pictures of %s, %d classes", part.split, len(part), part.name, len(part.classes))
    if data.check:
        run.folder.mkdir(parents=True, exist_ok=True)
        for warning in dist.main_first(lambda: check_labels(sets, run, data.max_errors)):
            log.info("data: %s", warning)
    common.keep_in_memory(config, sets)
    return train_set, val_set


def data_of(train_set, val_set) -> Data:
    """What a checkpoint says of the data, and a continued run must find again."""
    sets = {part.split: facts(part) for part in (train_set, val_set) if part is not None}
    return Data(tuple(train_set.classes), [list(map(int, color)) for color in train_set.colors], sets)


def make_deterministic(config: Config) -> None:
    """Has every operation repeat bit for bit, or raise RuntimeError with its name, if `train.deterministic`.

    If not, cuDNN tries out which of its kernels is the fastest, once, since all batches have the crop's size.
    """
    if config.train.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when the first product is computed
    torch.backends.cudnn.benchmark = not config.train.deterministic
    torch.use_deterministic_algorithms(config.train.deterministic)  # cuDNN's choice included


def check_labels(sets: list, run: common.RunPaths, max_errors: int) -> list[str]:
    """Reads every label once (remembered in the run's folder); what looks wrong, but is allowed.

    max_errors: samples that may be unusable in a set that goes on without them.

    Raises:
        ValueError: names the files that cannot be used.
    """
    reports = [
        check_dataset(part, stamp=run.folder / f"check_{part.split}.json",
                      may_skip=max_errors if part.skip_errors else 0)
        for part in sets
    ]
    warnings = []
    for part, report in zip(sets, reports, strict=True):
        warnings += [f"{part.split}: will be skipped (at most {max_errors}): {text}" for text in report.skipped]
        warnings += [f"{part.split}: {text}" for text in report.warnings]
    if len(sets) == 2:
        warnings += compare_splits(sets[0], reports[0], sets[1], reports[1])
    return warnings


def skips_of(config: Config, train_set, run: common.RunPaths) -> Skips | None:
    """What takes note of unreadable training samples, where the run goes on without them."""
    if config.data.on_error == "stop":
        return None
    return Skips(train_set.list_file, config.data.max_errors, run.folder / "skipped.txt", log.warning)


def class_uniform(config: Config, train_set, run: common.RunPaths) -> ClassUniform | None:
    """What draws the class-uniform share of each epoch, if there is one; rank 0 reads the labels for all."""
    data = config.data
    if not data.uniform:
        return None
    tile = data.uniform_tile or max(data.crop)
    points = dist.main_first(lambda: find_points(train_set, tile, file=run.folder / "uniform.npz"))
    if points.absent:
        log.info("data.uniform: no label holds the classes %s; they are left out", ", ".join(points.absent))
    return ClassUniform(points, len(train_set), data.uniform)


def build_training(config: Config, train_set, device: torch.device) -> Training:
    """Network, loss, optimiser and their helpers, ready for the first step."""
    random_state.seed(config.seed)
    model = common.network_of(config, len(train_set.classes))
    common.load_initial_weights(model, config)
    check_batch(config, model)
    if config.model.sync_bn:
        model = dist.convert_sync_batchnorm(model, device, config.train.compile)
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    model.to(device, memory_format=layout)
    ema = None
    if config.train.ema is not None:
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.train.ema), use_buffers=True)
    if config.train.checkpointing:
        recompute_blocks(model.backbone)
    o, loss = config.optim, config.loss
    optimizer = build_optimizer(
        model.parameter_groups(), o.name, o.lr, o.head_factor, o.momentum, o.weight_decay, o.decay_norm
    )
    steps_per_epoch = len(train_set) // config.train.batch_size
    if config.train.compile:
        compile_regions(model)
    criterion = SegLoss(
        loss.weights, len(train_set.classes), 255, loss.class_weights, loss.label_smoothing, loss.name,
        loss.options, loss.extra,
    )
    net = dist.wrap(model, device, static=config.train.accumulate == 1)
    random_state.seed(config.seed + 1 + dist.rank())  # dropout differs between the processes
    return Training(
        config, device, model, net, criterion.to(device), optimizer,
        build_schedule(optimizer, max(config.train.epochs * steps_per_epoch, 1), o.power, o.warmup_iters),
        torch.amp.GradScaler(device.type, enabled=config.train.amp == "fp16"), ema, steps_per_epoch,
    )


def check_batch(config: Config, model: nn.Module) -> None:
    """Refuses a batch of one picture where a batch norm sees a single pixel of it."""
    train = config.train
    part = dist.share(train.batch_size // train.accumulate, "train.batch_size / train.accumulate")
    shared = config.model.sync_bn and dist.world_size() > 1
    if part < model.smallest_train_batch and not shared:
        raise ValueError(
            f"train.batch_size {train.batch_size} gives {part} picture per forward pass, but "
            f"{config.model.name} has batch norm behind global pooling, which needs at least "
            f"{model.smallest_train_batch}; use a larger batch, fewer processes or less train.accumulate"
        )


def open_run(config: Config, run: common.RunPaths, device: torch.device, step: int) -> SummaryWriter:
    """Writes config.yaml and env.json into the run's folder; the TensorBoard writer (a dummy off rank 0).

    step: where the run continues; TensorBoard leaves out what was recorded after it before.
    """
    if dist.is_main():
        (run.folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        write_json(run.folder / "env.json", environment(device))
    return SummaryWriter(str(run.folder), purge_step=step + 1 if step else None, write_to_disk=dist.is_main())


def build_batches(training: Training, train_set, run: common.RunPaths):
    """This process's training batches, from the step on where the run continues."""
    config = training.config
    return build_loader(
        train_set, config.train.batch_size, dist.rank(), dist.world_size(), common.loader_workers(config), config.seed,
        training.step, config.train.accumulate, pin_memory=training.device.type == "cuda",
        uniform=class_uniform(config, train_set, run), loader=config.data.loader,
        skips=skips_of(config, train_set, run),
    )


def batches_on_device(training: Training, loader) -> Prefetch:
    """The loader's batches, step by step; they are augmented on the device if `data.augment` says so."""
    if training.config.data.augment == "device":
        training.augment = loader.dataset.transform.apply
    return Prefetch(iter(loader), training.device, training.config.train.accumulate)


def fit(
    training: Training, loader, val_set, checkpoints: Store, data: Data, writer: SummaryWriter, stop: signals.Stop
) -> int:
    """All epochs that are left: train, validate, save; 0, or the exit status of a run that a signal stopped."""
    train = training.config.train
    if training.closed >= train.epochs:
        log.info("nothing to do: %d epochs are done", train.epochs)
        return 0
    progress = Progress(training.step, train.epochs * loader.steps_per_epoch, train.batch_size)
    batches = batches_on_device(training, loader)
    stop.hold()
    status.note(state="running", step=training.step, total=progress.total, epochs=train.epochs)
    code = 0

    def border() -> bool:
        nonlocal code
        code = stop.poll()
        if not code and train.save_steps and training.step % train.save_steps == 0:
            save(training, checkpoints, data)
        return code != 0

    try:
        for epoch in range(training.closed, train.epochs):
            train_epoch(training, batches, (epoch + 1) * loader.steps_per_epoch, epoch, progress, writer, border)
            code = code or close_epoch(training, epoch, val_set, checkpoints, data, writer, stop)
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


def close_epoch(
    training: Training, epoch: int, val_set, checkpoints: Store, data: Data, writer, stop: signals.Stop
) -> int:
    """Validates and saves where it is due; the exit status if a signal came in between: then it is not closed."""
    train, improved = training.config.train, False
    last = epoch + 1 == train.epochs
    if val_set is not None and ((epoch + 1) % train.val_every == 0 or last):
        status.note(state="validating")
        dist.at(f"the validation after epoch {epoch + 1}")
        scores = validate(training, val_set, epoch, writer, stop)
        if scores is None:
            return stop.agree()
        improved = scores.mIoU > training.best
        training.best = max(training.best, scores.mIoU)
        status.note(state="running", best=training.best)
    training.closed = epoch + 1
    if improved or last or (epoch + 1) % train.save_every == 0:
        save(training, checkpoints, data, improved)
    return 0


@contextmanager
def any_size(compiled: bool):
    """What is compiled or tried out for the crop's size is not so for the size of every picture in here."""
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


def validate(training: Training, val_set, epoch: int, writer: SummaryWriter, stop: signals.Stop) -> Scores | None:
    """Scores the network on whole pictures at scale `train.val_scale`; None if a signal cut it short."""
    config = training.config
    dist.share_buffers(training.scored)  # every process has seen other pictures
    predictor = Predictor(
        training.scored, len(val_set.classes), config.data.mean, config.data.std, scales=(config.train.val_scale,),
        amp=AMP_TYPES[config.train.amp], device=training.device, channels_last=config.train.channels_last,
    )
    confusion = ConfusionMatrix(len(val_set.classes), val_set.ignore_label, training.device)
    indices = shard(range(len(val_set)), dist.rank(), dist.world_size())
    shown = {val_set.sample_name(i) for i in indices[:PICTURES_SHOWN]} if dist.is_main() else set()

    def show(sample, prediction):
        if sample["name"] in shown:
            image, truth = sample["image"].permute(1, 2, 0).numpy(), sample["label"].numpy()
            picture = triptych(image, truth, prediction, val_set.colors, val_set.classes)
            writer.add_image(f"val/{sample['name']}", picture, training.step, dataformats="HWC")

    samples = build_eval_loader(val_set, indices, common.loader_workers(config), config.data.loader)
    with any_size(config.train.compile):
        result, _ = evaluate(predictor, takewhile(lambda _: not stop.noted, samples), confusion, show)
    if stop.agree():
        return None
    log.info(
        "validation after epoch %d: mIoU %.4f mAcc %.4f allAcc %.4f%s",
        epoch + 1, result.mIoU, result.mAcc, result.allAcc, " (best so far)" if result.mIoU > training.best else "",
    )
    for name in ("mIoU", "mAcc", "allAcc"):
        writer.add_scalar(f"val/{name}", getattr(result, name), training.step)
    return result


if __name__ == "__main__":
    common.command(main)
