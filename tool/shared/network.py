"""From an experiment to its network.

Built, filled with weights, ready to train or to predict.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model import build_model, resolve_network
from model.inference.adapt import adapt
from model.inference.formats import ExportedFile, Form
from model.layer.shapes import shapes_only
from model.published import imagenet_weights, load_backbone_weights, load_published
from model.table import ModelError
from tool.shared.plugins import is_own, refuse_unnamed
from util import UserError, checkpoint, dist
from util.config.schema import Config, Precision, TestConfig
from util.loss import SegLoss
from util.record.log import log
from util.score.coarse import CoarsePredictor
from util.score.predict import Predictor
from util.train import random_state
from util.train.compile import compile_regions, obstacle
from util.train.loop import AMP_TYPES, Training
from util.train.optim import build_optimizer, build_schedule
from util.train.recompute import recompute_blocks


def network_of(config: Config, num_classes: int) -> torch.nn.Module:
    """Build the untrained network of the experiment."""
    return build_model(config.model.name, num_classes, config.model.backbone, **network_options(config))


def network_options(config: Config) -> dict[str, object]:
    """Return the network's options, with the channels of the images."""
    channels = config.data.channels
    return dict(config.model.options) | ({} if channels == 3 else {"in_channels": channels})


def check_network(config: Config) -> None:
    """Check name and options of the network, before data are read.

    Raises:
        ModelError: names what is unknown, missing or of another type.
    """
    resolve_network(config.model.name, config.model.backbone, network_options(config))


def load_initial_weights(model: torch.nn.Module, config: Config, classes: Sequence[str] = ()) -> None:
    """Fill the network from `model.weights` or `model.init`.

    The former are the backbone's alone. classes: names, into whose order the outputs of a checkpoint of ours are put.

    Raises:
        OSError: a file is missing or cannot be fetched; says where it comes from and how to start without it.
        UserError: the weights do not fit.
    """
    weights, init = config.model.weights, config.model.init
    if weights != "none" and not init:
        _load_backbone(model, weights, config)
    if init:
        state = checkpoint.load(init)
        if checkpoint.is_ours(state):
            checkpoint.check_ours(state, init)
            weights, reordered = weights_in_order(state, classes)
            skipped = checkpoint.load_strictly(model, weights, init, config.model.init_skip)
            log.info("network from %s%s", init, f", but {len(skipped)} parameters" if skipped else "")
            if reordered:
                log.info("%s", reordered)
        else:
            with naming(init):
                log.info("network from %s: %s", init, load_published(model, state, config.model.init_skip))


def weights_in_order(state: dict, classes: Sequence[str]) -> tuple[dict, str | None]:
    """Put a checkpoint's weights in the order of the classes.

    Returns the weights, the same if they agree, and a line for the log. Which axes of which tensors count the classes
    is seen from the network with one class more.

    Raises:
        UserError: a tensor mixes classes and other channels along one axis.
    """
    known, spec, weights = state.get("classes"), state["spec"], state["model"]
    if known is None or list(known) == list(classes) or sorted(known) != sorted(classes):
        return weights, None
    number = len(classes)
    with shapes_only():
        own, larger = (
            build_model(spec["name"], count, spec["backbone"], **spec["options"]).state_dict()
            for count in (number, number + 1)
        )
    order, out = torch.tensor([list(known).index(name) for name in classes]), dict(weights)
    for name in own:
        for axis, (size, size_of_larger) in enumerate(zip(own[name].shape, larger[name].shape, strict=True)):
            if size == size_of_larger:
                continue
            if size != number:
                raise UserError(
                    f"the classes are in another order than in the checkpoint, and {name} cannot be put in order; "
                    f"write data.classes: [{', '.join(known)}]"
                )
            out[name] = out[name].index_select(axis, order)
    return out, f"classes of the checkpoint in another order: {', '.join(known)}; its weights are put in order"


def _load_backbone(model: torch.nn.Module, weights: str, config: Config) -> None:
    """Fills the backbone with ImageNet weights: fetched by the backbone's name, or from a file."""
    if model.backbone is None:
        raise UserError(f"model.weights: {config.model.name} has no backbone; leave it out, or give model.init=FILE")
    if weights == "imagenet":
        source, state, expected = imagenet_weights(model.backbone.spec["name"])
        log.info("backbone from %s: %s", source, load_backbone_weights(model.backbone, state))
        given = (*config.data.mean, *config.data.std)
        if config.data.channels == 3 and any(
            abs(a - b) > 1 for a, b in zip(given, (*expected.mean, *expected.std), strict=False)
        ):
            log.warning(
                "the backbone was trained on images with data.mean=%s data.std=%s; the experiment has %s and %s",
                *(list(values) for values in (expected.mean, expected.std, config.data.mean, config.data.std)),
            )
        return
    file = next((path for path in (Path(weights), Path("initmodel", weights)) if path.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"model.weights: {weights} is missing. initmodel/README.md says where each file of initial weights comes "
            "from; put it there, have it fetched with model.weights=imagenet, or start from random weights with "
            "model.weights=none"
        )
    with naming(file):
        log.info("backbone from %s: %s", file, load_backbone_weights(model.backbone, checkpoint.load(file)))


@contextmanager
def naming(file: str | Path) -> Iterator[None]:
    """Put the file's name before what does not fit in it."""
    try:
        yield
    except ModelError as error:
        raise UserError(f"{file}: {error}") from None


def rebuild(state: dict, path: str | Path) -> torch.nn.Module:
    """Return the trained network of a checkpoint of ours.

    Of an exported file the file itself, as a network.

    Raises:
        UserError: the checkpoint does not say which network it holds, or needs code that nobody has named, or its
            weights do not fit.
    """
    checkpoint.check_ours(state, path)
    spec = state["spec"]
    if isinstance(form := state.get("export"), Form):  # of `read_ours` alone: a checkpoint holds plain values
        return ExportedFile(path, form, spec)
    refuse_unnamed(state, path)
    try:
        model = build_model(spec["name"], spec["num_classes"], spec["backbone"], **spec["options"])
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError) as error:
        if is_own(spec) and not isinstance(error, ModelError):
            raise  # of the user's own class, whose line the traceback shows
        raise UserError(f"{path}: its network cannot be built ({error})") from error
    try:
        checkpoint.load_strictly(model, state["model"], str(path))
    except UserError as error:
        if is_own(spec):
            raise UserError(f"{error}; has the code of {spec['name']} changed since?") from None
        raise
    return model


def make_deterministic(config: Config) -> None:
    """Have every operation repeat bit for bit, if `train.deterministic`.

    An operation that cannot raises RuntimeError with its name. If not, cuDNN tries out which of its kernels is the
    fastest, once, since all batches have the crop's size.
    """
    if config.train.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when the first product is computed
    torch.backends.cudnn.benchmark = not config.train.deterministic
    torch.use_deterministic_algorithms(config.train.deterministic)  # cuDNN's choice included


def build_training(config: Config, train_set, device: torch.device) -> Training:
    """Network, loss, optimiser and their helpers, ready for the first step."""
    random_state.seed(config.seed)
    model = network_of(config, len(train_set.classes))
    load_initial_weights(model, config, train_set.classes)
    check_batch(config, model)
    if config.model.sync_bn:
        model = dist.convert_sync_batchnorm(model, device, config.train.compile)
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    model.to(device, memory_format=layout)
    if is_own(model.spec):
        try_out(model, config, len(train_set.classes), device)
    ema = None
    if config.train.ema is not None:
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.train.ema), use_buffers=True)
    if config.train.checkpointing:
        recompute_blocks(model.backbone)
    o, loss = config.optim, config.loss
    if loss.class_weights == "auto":
        raise UserError("loss.class_weights: auto is for a training, which reads the labels; write numbers here")
    optimizer = build_optimizer(
        model.parameter_groups(), o.name, o.lr, o.head_factor, o.momentum, o.weight_decay, o.decay_norm
    )
    steps_per_epoch = len(train_set) // config.train.batch_size
    if config.train.compile:
        reason = obstacle(device)
        if reason is None:
            compile_regions(model)
        else:
            log.warning("train.compile: not compiled, %s", reason)
    criterion = SegLoss(
        loss.weights,
        len(train_set.classes),
        255,
        loss.class_weights,
        loss.label_smoothing,
        loss.name,
        loss.options,
        loss.extra,
        loss.outputs,
    )
    net = dist.wrap(model, device, static=config.train.accumulate == 1)
    random_state.seed(config.seed + 1 + dist.rank())  # dropout differs between the processes
    return Training(
        config,
        device,
        model,
        net,
        criterion.to(device),
        optimizer,
        build_schedule(optimizer, max(config.train.epochs * steps_per_epoch, 1), o.power, o.warmup_iters),
        torch.amp.GradScaler(device.type, enabled=config.train.amp == "fp16"),
        ema,
        steps_per_epoch,
    )


def try_out(model: nn.Module, config: Config, num_classes: int, device: torch.device) -> None:
    """Predict a grey picture with a network of the user's own.

    What it gives in evaluation mode would else be seen after an epoch of training, in the first validation.

    Raises:
        UserError: it gives anything else than logits of the picture's size.
    """
    size, kind = config.augment.crop, type(model).__name__
    model.eval()
    with torch.no_grad():
        outputs = model(torch.zeros(1, config.data.channels, *size, device=device))
    model.train()
    if not isinstance(outputs, dict) or "out" not in outputs:
        given = sorted(outputs) if isinstance(outputs, dict) else f"a {type(outputs).__name__}"
        raise UserError(
            f"model.name: {kind} gives {given} in evaluation mode; a network gives a dict with logits 'out'"
        )
    shape = tuple(outputs["out"].shape)
    if shape != (1, num_classes, *size):
        raise UserError(
            f"model.name: {kind} gives logits {shape} for a picture of {size[0]}x{size[1]} and {num_classes} classes; "
            f"{(1, num_classes, *size)} are needed"
        )


def check_batch(config: Config, model: nn.Module) -> None:
    """Refuse a batch of one picture where that cannot train.

    A batch norm would see a single pixel of it.
    """
    train = config.train
    part = dist.share(train.batch_size // train.accumulate, "train.batch_size / train.accumulate")
    shared = config.model.sync_bn and dist.world_size() > 1
    if part < model.smallest_train_batch and not shared:
        raise UserError(
            f"train.batch_size {train.batch_size} gives {part} picture per forward pass, but "
            f"{config.model.name} has batch norm behind global pooling, which needs at least "
            f"{model.smallest_train_batch}; use a larger batch, fewer processes or less train.accumulate"
        )


def build_predictor(
    model: nn.Module,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    channel_order: str,
    test: TestConfig,
    device: torch.device,
    channels_last: bool = False,
    outputs: Sequence[int] | None = None,
) -> Predictor:
    """Build the predictor of a protocol.

    `test` is that of an experiment, whose preset is resolved, or says every key. outputs: for each of the `num_classes`
    its channel of the logits; None for all of them in their order.

    Raises:
        UserError: the protocol averages, and the network is an exported file that gives classes.
    """
    if getattr(model, "gives_classes", False) and (test.flip or len(test.scales) > 1 or test.window != "none"):
        raise UserError(
            "the exported file gives classes, which cannot be averaged: export without --argmax, or use "
            "test.flip=false test.scales=[1] test.window=none"
        )
    kind = CoarsePredictor if test.windows == "fast" else Predictor
    return kind(
        adapt(model, channel_order, outputs),
        num_classes,
        mean,
        std,
        test.scales,
        test.flip,
        None if test.window == "none" else test.window,
        test.stride_rate,
        test.base_size,
        test.window_batch,
        AMP_TYPES[test.amp],
        device,
        channels_last,
    )


def whole_pictures(scale: float = 1.0, amp: Precision = "off") -> TestConfig:
    """Return the protocol of whole pictures at one scale.

    That of a validation and of the demo.
    """
    return TestConfig(scales=(scale,), amp=amp).resolved((1, 1), None)
