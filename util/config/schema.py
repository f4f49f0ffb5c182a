"""Every key of an experiment: type, default, meaning.

Frozen, typed sections, and what must fit together. docs/config.md is made from it; `util.config` reads experiments.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator


def _yaml_off(value):
    return "off" if value is False else value  # YAML 1.1 reads a bare off as false


Precision = Annotated[Literal["off", "bf16", "fp16"], BeforeValidator(_yaml_off)]


Percent = Annotated[str, Field(pattern=r"^\d+(\.\d+)?%$")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# Bounds of what the program can hold, far above what is of use: beyond them a slip of the hand asks for more memory or
# time than there is, or for a number that a library cannot take.
COUNT = 10**9  # steps, pictures, epochs between two things
SIDE = 2**15  # pixels of a picture's or window's side
AREA = 2**25  # pixels of a crop: 8192 x 4096
FACTOR = 100.0  # of a random scale, either way
SCALE = 8.0  # of whole pictures: their memory grows with its square
WEIGHT = 1e6

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


# Published ways to score a network. What they leave to the experiment (several scales) its own keys say.
PROTOCOLS: dict[str, dict[str, Any]] = {
    # The whole picture as it is.
    "whole": {"scales": (1.0,), "flip": False, "window": "none", "stride_rate": 2 / 3, "base_size": None},
    # Sliding windows of the training crop: hszhao/semseg (Zhao et al., CVPR 2017), and Jin et al., IEEE Access 2021.
    "semseg": {"scales": (1.0,), "flip": True, "window": "crop", "stride_rate": 2 / 3, "base_size": None},
    "sketchfill": {"scales": (1.0,), "flip": True, "window": "crop", "stride_rate": 1 / 2, "base_size": None},
}


class DataConfig(Section):
    """Which images and labels, and what their ids mean."""

    name: str = Field(
        description="data set: an entry of dataset.DATASETS, 'custom' for your own pictures, or a class's dotted path"
    )
    root: str = Field(description="folder that the paths in the list files are relative to, or its URL")
    train_list: str | None = Field(
        None, description="list file, or tar shards (FOLDER/train-{000..009}.tar); default: ROOT/train.txt"
    )
    val_list: str | None = Field(None, description="the same of the split val; default: ROOT/val.txt")
    test_list: str | None = Field(None, description="the same of the split test; default: ROOT/test.txt")
    classes: tuple[str, ...] | None = Field(None, description="class names of your own data")
    colors: tuple[tuple[int, int, int], ...] | None = Field(
        None, description="RGB colour per class, of drawings and of labels drawn in colours"
    )
    label_map: dict[int | str, int | Literal["identity"]] | None = Field(
        None,
        description="id on disk (or colour 'R,G,B') -> class index, or 255 to ignore; 'rest: identity' adds the ids of "
        "the classes that it does not name",
    )
    channels: int = Field(3, ge=1, le=512, description="bands of an image; 3: RGB, which grey images become too")
    range: tuple[float, float] | tuple[Percent, Percent] | None = Field(
        None,
        description="values that become 0 and 255, as [LOW, HIGH], or as [2%, 98%] of the values of each band of each "
        "image; default: images of 8 bits as they are, of 16 bits their upper byte",
    )
    mean: tuple[float, ...] = Field(IMAGENET_MEAN, description="mean of each channel on the scale 0..255")
    std: tuple[float, ...] = Field(IMAGENET_STD, description="deviation of each channel on the scale 0..255")
    channel_order: Literal["rgb", "bgr"] = Field(
        "rgb", description="order in which the network sees the channels; mean and std are R, G, B all the same"
    )
    long_side: int | None = Field(
        None,
        ge=1,
        le=SIDE,
        description="long side of the images at scale 1, pixels, to which the protocols of semseg resize",
    )
    check: Literal["off", "full"] | Annotated[int, Field(ge=1, le=COUNT)] = Field(
        "full",
        description="labels that are read once before the first step (remembered afterwards): all, none, or a number "
        "of samples, drawn at random",
    )

    @field_validator("check", mode="before")
    @classmethod
    def _how_many(cls, value):
        value = ("full" if value else "off") if isinstance(value, bool) else value
        if value in ("full", "off") or (isinstance(value, int) and 1 <= value <= COUNT):
            return value
        raise ValueError(f"check: {value!r} is neither full nor off, nor a number of samples")

    @field_validator("label_map", mode="after")
    @classmethod
    def _numbers(cls, value):
        if value is None:
            return None
        if any((key == "rest") != (target == "identity") for key, target in value.items()):
            raise ValueError("'rest: identity' is the one entry that is no number or colour")
        wrong = [f"{key}: {index}" for key, index in value.items() if index != "identity" and not 0 <= index <= 255]
        if wrong:
            raise ValueError(f"{wrong[0]}: class indices are 0 to 254, and 255 ignores")
        return {int(k) if re.fullmatch(r"-?\d+", str(k)) else k: v for k, v in value.items()}

    @model_validator(mode="after")
    def _consistent(self):
        for key in ("mean", "std"):
            if len(getattr(self, key)) != self.channels:
                raise ValueError(
                    f"{key}: {len(getattr(self, key))} values for the {self.channels} channels of data.channels; "
                    f"python -m tool.prepare custom --root DIR --channels {self.channels} measures them"
                )
        if self.range is not None:
            low, high = (float(str(limit).removesuffix("%")) for limit in self.range)
            if low >= high or (isinstance(self.range[0], str) and high > 100):
                raise ValueError(f"range: {list(self.range)} must be a lower and a higher limit")
        if self.channel_order == "bgr" and self.channels != 3:
            raise ValueError(f"channel_order: bgr needs three channels, data.channels is {self.channels}")
        if min(self.std) < 1e-3 or max(self.std) > 1e3:
            raise ValueError("std: every value must be positive, and on the scale 0..255")
        if max(map(abs, self.mean)) > 1e3:
            raise ValueError(f"mean: {list(self.mean)} is not on the scale 0..255")
        if max(self.std) < 1:
            scaled = [[round(255 * value, 3) for value in values] for values in (self.mean, self.std)]
            raise ValueError(
                f"std: {list(self.std)} is on the scale 0..1, images are on 0..255; "
                f"write mean: {scaled[0]} and std: {scaled[1]}"
            )
        if self.name == "custom" and not self.classes:
            raise ValueError("name: custom needs 'classes', the list of class names")
        if self.classes is not None and not 2 <= len(self.classes) <= 255:
            raise ValueError(f"classes: {len(self.classes)} names; between 2 and 255 are possible")
        if self.classes is not None and not all(name.strip() for name in self.classes):
            raise ValueError("classes: a name is empty")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a name occurs twice")
        if self.colors is not None and self.classes is not None and len(self.colors) != len(self.classes):
            raise ValueError(f"colors: {len(self.colors)} colours for {len(self.classes)} classes")
        if self.colors is not None and any(not 0 <= v <= 255 for color in self.colors for v in color):
            raise ValueError("colors: values must be within 0..255")
        return self


class AugmentConfig(Section):
    """The crop of a training sample, and what is random."""

    crop: tuple[int, int] = Field((512, 512), description="height and width of a training crop, pixels")
    scale: tuple[float, float] = Field((0.5, 2.0), description="range of the random scale factor")
    rotate: tuple[float, float] = Field((-10.0, 10.0), description="range of the random rotation, degrees")
    rotate_prob: float = Field(0.5, ge=0, le=1, description="share of the samples that are rotated")
    blur_prob: float = Field(0.5, ge=0, le=1, description="share of the samples that are blurred (5x5 Gaussian)")
    flip_prob: float = Field(0.5, ge=0, le=1, description="share of the samples that are mirrored")
    jitter: tuple[float, float, float, float] = Field(
        (0.0, 0.0, 0.0, 0.0), description="ranges of the random brightness, contrast, saturation and hue"
    )
    photometric: bool = Field(
        False, description="colour distortion of MMSegmentation (PhotoMetricDistortion), instead of jitter"
    )
    vflip_prob: float = Field(0.0, ge=0, le=1, description="share of the samples that are flipped upside down")
    turn_prob: float = Field(
        0.0, ge=0, le=1, description="share of the samples that are turned by 90, 180 or 270 degrees, each as often"
    )
    cutout_prob: float = Field(
        0.0, ge=0, le=1, description="share of the samples of which a square is cut out, and ignored (Cutout)"
    )
    cutout_size: float = Field(
        0.25, gt=0, le=1, description="side of that square, as a share of the crop's shorter side"
    )
    own: tuple[str, ...] = Field(
        (), description="functions of yours that augment the crops, by dotted path or a name in AUGMENTATIONS"
    )
    cutmix_prob: float = Field(
        0.0, ge=0, le=1, description="share of the samples into which a box of another crop is pasted (CutMix)"
    )
    classmix_prob: float = Field(
        0.0, ge=0, le=1, description="share of the samples into which half the classes of another are pasted (ClassMix)"
    )
    copy_paste_prob: float = Field(
        0.0, ge=0, le=1, description="share of the samples into which the next key's classes of another are pasted"
    )
    copy_paste_classes: tuple[str, ...] = Field((), description="names of the rare classes that are pasted")

    @model_validator(mode="after")
    def _consistent(self):
        for key in ("scale", "rotate"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key}: the minimum {low} is larger than the maximum {high}")
        if self.scale[0] <= 0:
            raise ValueError(f"scale: {self.scale[0]} is not a positive factor")
        if not 1 / FACTOR <= self.scale[0] <= self.scale[1] <= FACTOR:
            raise ValueError(f"scale: {list(self.scale)} is not within {1 / FACTOR} and {FACTOR}")
        if not -360 <= self.rotate[0] <= self.rotate[1] <= 360:
            raise ValueError(f"rotate: {list(self.rotate)} is not within -360 and 360 degrees")
        if min(self.crop) < 1:
            raise ValueError(f"crop: {self.crop} is not a positive size")
        if max(self.crop) > SIDE or self.crop[0] * self.crop[1] > AREA:
            raise ValueError(f"crop: {self.crop} has a side above {SIDE}, or more than {AREA:,} pixels")
        if min(self.jitter) < 0 or max(self.jitter) > FACTOR:
            raise ValueError(f"jitter: ranges cannot be negative, nor above {FACTOR}")
        if self.cutmix_prob + self.classmix_prob + self.copy_paste_prob > 1:
            raise ValueError(
                "cutmix_prob, classmix_prob and copy_paste_prob: together at most 1, a sample is mixed once"
            )
        if (self.copy_paste_prob > 0) != bool(self.copy_paste_classes):
            raise ValueError("copy_paste_classes: names of classes, together with copy_paste_prob")
        if self.photometric and any(self.jitter):
            raise ValueError("photometric: takes the place of jitter; set jitter to [0, 0, 0, 0]")
        return self


class LoaderConfig(Section):
    """How the training samples are chosen and read."""

    workers: int = Field(
        4, ge=0, le=1024, description="loader workers per training process, at most its share of the cores"
    )
    packed: str | None = Field(
        None, description="folder of packed data (tool.pack) to read; auto: ROOT/packed, if it holds the split"
    )
    cache: Literal["none", "memory"] = Field(
        "none", description="memory: decode all pictures once, into memory that the processes of a machine share"
    )
    uniform: float = Field(
        0.0, ge=0, le=1, description="share of each epoch in which every class has the same number of crops"
    )
    uniform_tile: int | None = Field(
        None, ge=1, le=SIDE, description="side of the tiles that each offer one such crop a class; default: the crop"
    )

    @model_validator(mode="after")
    def _consistent(self):
        if self.packed and self.cache != "none":
            raise ValueError("cache: packed data need no cache, the system keeps them in memory; set one of the two")
        return self


class ModelConfig(Section):
    """Which network, and what it starts from."""

    name: str = Field(description="network: an entry of model.MODELS, or a class's dotted path")
    backbone: str | None = Field(
        None, description="backbone: an entry of model.backbone.BACKBONES, timm/NAME, or a dotted path"
    )
    options: dict[str, Any] = Field({}, description="further arguments of the network, e.g. {output_stride: 8}")
    weights: str = Field(
        "none",
        description="ImageNet weights of the backbone: 'imagenet' fetches them from timm or torchvision, else a file "
        "(.pth or .safetensors; a bare name is looked for in initmodel/) or 'none'",
    )
    init: str | None = Field(None, description="checkpoint of a whole network to start from (ours or published)")
    init_skip: tuple[str, ...] = Field((), description="prefixes of parameters that 'init' may leave as they are")
    sync_bn: bool = Field(False, description="batch norm over all processes; ordinary batch norm on one process")

    @field_validator("weights", mode="before")
    @classmethod
    def _no_weights(cls, value):
        return "none" if value in (None, "") else value


class LossConfig(Section):
    """What is minimised: the weighted sum over the network's outputs."""

    name: str = Field(
        "cross_entropy",
        description="loss of every output map: cross_entropy, ohem, relaxed, dice, lovasz, or the dotted path of yours",
    )
    options: dict[str, Any] = Field({}, description="further arguments of that loss, e.g. {min_kept: 100000} of ohem")
    weights: dict[str, float] = Field(
        {"out": 1.0, "aux": 0.4}, description="weight of each output: out, aux, dsn0, dsn1, ..."
    )
    extra: dict[str, float] = Field({}, description="weight of losses added for the main output, e.g. {dice: 0.5}")
    outputs: dict[str, str] = Field({}, description="loss of single outputs by their name, e.g. {se: presence}")
    class_weights: tuple[float, ...] | Literal["auto"] | None = Field(
        None, description="weight of each class, in class order; auto: by median frequency in the training labels"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")

    @model_validator(mode="after")
    def _consistent(self):
        if "out" not in self.weights:
            raise ValueError("weights: the main output 'out' needs a weight")
        for key in ("weights", "extra"):
            if any(not 0 <= w <= WEIGHT for w in getattr(self, key).values()):
                raise ValueError(f"{key}: cannot be negative, nor above {WEIGHT:g}")
        given = None if self.class_weights == "auto" else self.class_weights
        if given is not None and not given:
            raise ValueError("class_weights: one for each class is needed")
        if given is not None and (min(given) < 0 or max(given) == 0):
            raise ValueError("class_weights: cannot be negative, and one must be positive")
        if given is not None and max(given) > WEIGHT:
            raise ValueError(f"class_weights: {max(given):g} is above {WEIGHT:g}")
        if self.name != "cross_entropy" or self.options or self.extra or self.label_smoothing or self.outputs:
            from util.loss import LOSSES, check_loss

            # Own code that is not imported, as of a checkpoint's experiment, is refused where the loss is built.
            if any("." in name and name not in LOSSES for name in (self.name, *self.extra, *self.outputs.values())):
                return self
            check_loss(self.name, self.options, self.label_smoothing, self.extra, self.outputs)
        return self


class OptimConfig(Section):
    """How the parameters move."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="optimiser")
    lr: float = Field(0.01, gt=0, le=1e38, description="learning rate of the backbone")
    head_factor: float = Field(
        10.0, gt=0, le=WEIGHT, description="learning rate of everything beside the backbone, as a multiple of lr"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD; first beta of AdamW")
    weight_decay: float = Field(1e-4, ge=0, le=1e3, description="weight decay, on every parameter")
    decay_norm: bool = Field(True, description="weight decay also on biases and normalisation parameters")
    power: float = Field(0.9, ge=0, le=100, description="exponent of the poly schedule (1 - step/steps)^power")
    warmup_iters: int = Field(0, ge=0, le=COUNT, description="optimiser steps of linear warm-up")
    clip_grad: float | None = Field(None, gt=0, le=1e9, description="largest norm of the gradient; none: unlimited")


class TrainConfig(Section):
    """The run."""

    epochs: int = Field(ge=1, le=10**6, description="passes over the training pictures")
    batch_size: int = Field(ge=1, le=10**6, description="pictures per optimiser step, over all processes")
    accumulate: int = Field(1, ge=1, le=10**6, description="forward and backward passes per optimiser step")
    amp: Precision = Field("off", description="precision of the forward pass")
    channels_last: bool = Field(True, description="memory format N,H,W,C")
    compile: bool = Field(False, description="torch.compile the network's blocks, which takes minutes at the start")
    checkpointing: bool = Field(
        False, description="compute the backbone's activations again in the backward pass: less memory, more time"
    )
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the averaged weights; none: off")
    val_every: int = Field(1, ge=0, le=COUNT, description="epochs between validations; 0: none")
    val_scale: float = Field(1.0, ge=0.01, le=SCALE, description="scale at which a validation sees the whole pictures")
    save_every: int = Field(1, ge=1, le=COUNT, description="epochs between checkpoints")
    save_steps: int | None = Field(
        None, ge=1, le=COUNT, description="optimiser steps between checkpoints; none: epochs only"
    )
    keep_last: int = Field(2, ge=1, le=COUNT, description="how many of the newest checkpoints stay")
    keep_every: int = Field(
        0, ge=0, le=COUNT, description="each epoch whose number this divides stays as well; 0: none"
    )
    val_curves: bool = Field(
        True, description="in a validation also the cross-entropy, and for TensorBoard precision over recall by class"
    )
    log_every: int = Field(10, ge=1, le=COUNT, description="optimiser steps between log lines")
    trackers: tuple[Literal["wandb", "mlflow"], ...] = Field(
        (), description="where the run is sent, too: wandb, mlflow (pip install -e .[trackers])"
    )
    resume: Literal["auto", "never", "force"] = Field(
        "auto", description="continue the run that is there; force: also if experiment or data changed"
    )
    deterministic: bool = Field(False, description="only operations that repeat bit for bit; any other is an error")

    @model_validator(mode="after")
    def _consistent(self):
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        return self


class TestConfig(Section):
    """How the result is scored."""

    __test__ = False  # pytest: not a test class

    split: Literal["train", "val", "test"] = Field("val", description="which list; 'test' may have no labels")
    checkpoint: Literal["last", "best"] = Field("last", description="which of the run's checkpoints is scored")
    protocol: Literal["whole", "semseg", "sketchfill"] = Field("whole", description="preset of the next five keys")
    scales: tuple[float, ...] | None = Field(None, description="factors at which each picture is seen; default: 1")
    flip: bool | None = Field(
        None, description="average with the mirrored picture; default: true for semseg and sketchfill"
    )
    window: tuple[int, int] | Literal["none"] | None = Field(
        None,
        description="height and width of the sliding window, or 'none'; default: the crop for semseg and sketchfill",
    )
    stride_rate: float | None = Field(
        None, ge=0.01, le=1, description="step of the window, as a share of its size; default: 2/3, for sketchfill 1/2"
    )
    base_size: int | None = Field(
        None,
        ge=1,
        le=SIDE,
        description="long side at scale 1, pixels; default: data.long_side for semseg and sketchfill",
    )
    windows: Literal["exact", "fast"] = Field(
        "exact", description="fast: average logits on the coarse grid, enlarge once; near to the published procedure"
    )
    compare: int = Field(
        10, ge=0, le=COUNT, description="with windows fast: pictures scored exactly too, for metrics.json"
    )
    window_batch: int | None = Field(
        None, ge=1, le=4096, description="windows per forward pass; default: 4, on a CPU 2"
    )
    amp: Precision = Field("off", description="precision of the forward pass")
    optimize: Literal["none", "fold", "compile"] = Field(
        "none",
        description="fold: norms joined with convolutions (scores change by rounding); compile: and torch.compile",
    )
    engine: Literal["torch", "onnxruntime", "openvino"] = Field(
        "torch", description="what runs the network; the others on the CPU, exported (pip install -e .[export])"
    )
    keep_memory: bool = Field(True, description="on a CPU: keep freed memory, in huge pages; faster, larger")
    save_gray: bool = Field(True, description="write predictions as class ids")
    save_color: bool = Field(True, description="write predictions in colour")
    pictures: int = Field(12, ge=0, le=COUNT, description="how many pictures photo | truth | prediction are written")
    report: bool = Field(
        True, description="write report.html and the scores of single images; boundaries and object sizes cost time"
    )
    submission: bool = Field(False, description="write a zip in the label ids and names of the test server")
    has_prediction: bool = Field(False, description="score the predictions that are already in gray/ of the result")
    void: Literal["ignore", "class"] = Field(
        "ignore",
        description="of a network with one output more than classes, the last for what is ignored: without this "
        "output, or ignored pixels as one more class, which counts as wrong but has no part in the mean",
    )
    index_start: int = Field(0, ge=0, le=COUNT, description="first picture of the list")
    index_step: int = Field(0, ge=0, le=COUNT, description="how many pictures of the list; 0: to the end")

    @model_validator(mode="after")
    def _consistent(self):
        if self.scales is not None and (not self.scales or min(self.scales) <= 0):
            raise ValueError("scales: a list of positive factors is needed")
        if self.scales is not None and not 0.01 <= min(self.scales) <= max(self.scales) <= SCALE:
            raise ValueError(f"scales: {list(self.scales)} are not within 0.01 and {SCALE}")
        if isinstance(self.window, tuple) and not 1 <= min(self.window) <= max(self.window) <= SIDE:
            raise ValueError(f"window: {self.window} is not a size of 1 to {SIDE} pixels")
        if self.void == "class" and self.submission:
            raise ValueError("submission: a test server has no class for void; leave void at ignore")
        if self.engine != "torch":
            if self.windows == "fast":
                raise ValueError("engine: windows=fast needs the network's coarse logits, which only torch gives")
            if self.optimize != "none":
                raise ValueError("engine: folds norms by itself; optimize is for torch, leave it at none")
            if self.amp == "fp16" or (self.amp == "bf16" and self.engine == "onnxruntime"):
                raise ValueError(
                    f"engine: {self.engine} does not compute in {self.amp} here; amp=off, or bf16 with openvino"
                )
        return self

    def resolved(self, crop: tuple[int, int], long_side: int | None) -> "TestConfig":
        """Fill in what the protocol says of the open keys."""
        sliding = {"window": crop, "base_size": long_side} if self.protocol != "whole" else {}
        preset = PROTOCOLS[self.protocol] | sliding
        return self.model_copy(update={key: value for key, value in preset.items() if getattr(self, key) is None})


class Config(Section):
    """One experiment."""

    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    loader: LoaderConfig = LoaderConfig()
    model: ModelConfig
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    test: TestConfig = TestConfig()
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the initial weights, the order and the augmentation")
    plugins: tuple[str, ...] = Field(
        (), description="Python files to import first, which may add to MODELS, BACKBONES, LOSSES, DATASETS"
    )

    @model_validator(mode="after")
    def _consistent(self):
        # The one place that may change a frozen section, while it is made: the protocol needs crop and long side.
        object.__setattr__(self, "test", self.test.resolved(self.augment.crop, self.data.long_side))
        channels = self.data.channels
        if channels != 3 and (self.augment.photometric or any(self.augment.jitter)):
            raise ValueError(
                f"augment: jitter and photometric change RGB, data.channels is {channels}; switch them off"
            )
        if self.model.options.get("in_channels", channels) != channels:
            raise ValueError(
                f"model.options: in_channels {self.model.options['in_channels']}, but data.channels is {channels}"
            )
        if self.test.protocol != "whole" and self.test.base_size is None:
            raise ValueError(f"test.protocol: {self.test.protocol} needs test.base_size or data.long_side, in pixels")
        if isinstance(self.loss.class_weights, tuple) and self.data.classes is not None:
            given, classes = len(self.loss.class_weights), len(self.data.classes)
            if given != classes:
                raise ValueError(f"loss.class_weights: {given} weights for the {classes} classes of data.classes")
        return self
