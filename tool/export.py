"""Exports a trained network as a file, and compares the two.

    python -m tool.export exp/camvid/sfnet_mobile/model/last.pth --to onnx --size 360 480
    python -m tool.export FILE --to openvino --dynamic --with-preprocessing --argmax --out net.xml
    python -m tool.export FILE --to onnx --int8 /data/street/image --pictures /data/street/image
    python -m tool.export FILE --to weights --out net.safetensors

The file maps `image`, float32 (N,3,H,W) R, G, B normalised by the caller, to `logits`, float32 (N,classes,H,W). With
--with-preprocessing image is uint8, 0..255; with --argmax the file gives `classes`, uint8 (N,H,W). It holds the
classes, colours and preprocessing of the network. Before it is kept, it is compared with the network on pictures:
--pictures, or drawn street scenes. What differs too much is refused with status 2, unless --force says otherwise. `--to
weights` writes weights and facts alone, as safetensors, which every command here takes for a checkpoint. tool.test
--checkpoint scores each of them.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from dataset.read.image import read_image
from dataset.scene import draw_scene
from model.inference.adapt import adapt
from model.inference.formats import FORMATS, ExportedFile, Form, write, write_facts
from tool.shared import cli, plugins
from tool.shared.hub import is_on_hub, local_file
from tool.shared.network import rebuild
from tool.shared.pictures import pictures_in, shrink
from tool.shared.published import read_ours, slim_config, version, without_void
from util import UserError, checkpoint
from util.checkpoint.facts import Facts, facts_of
from util.record.log import log, open_log
from util.score.metric import ConfusionMatrix

WEIGHTS = "weights"
MOST = 16  # pictures that are compared unless told; of int8 also those that the ranges are taken from, MOST_CALIBRATION
MOST_CALIBRATION = 64
LONGEST = 1024  # longer side that larger pictures are shrunk to where the file is for any size
DRAWN = ((192, 256), (225, 161))  # (H, W) of the drawn scenes where the file is for any size
ROUNDS = 5
# By precision: the largest difference of logits, as a share of the largest logit, and the least share of equal classes.
BOUNDS = {"float32": (1e-3, 0.999), "float16": (0.05, 0.99), "int8": (1.0, 0.95)}


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    plugins.use(args.plugin)
    open_log(None)
    if is_on_hub(args.checkpoint):
        if not args.out:
            raise UserError(f"{args.checkpoint}: give --out FILE; nothing is written into the cache of the Hub")
        args.checkpoint = local_file(args.checkpoint)
    if args.to == WEIGHTS:
        return export_weights(args)
    state = read_ours(args.checkpoint)
    if "export" in state:
        raise UserError(f"{args.checkpoint}: is exported already; export the checkpoint that it comes from")
    facts, network = facts_of(state), rebuild(state, args.checkpoint).eval()
    number = network.spec["num_classes"]
    outputs = without_void(facts, number)
    count, (mean, std) = len(outputs or range(number)), facts.normalisation
    if args.argmax and count > 256:
        raise UserError(f"--argmax gives bytes, and the network has {count} classes; leave it out for logits")
    seen = adapt(network, facts.channel_order, outputs).eval()
    form = Form(
        size_of(args, state, facts),
        tuple(mean) if args.with_preprocessing else None,
        tuple(std) if args.with_preprocessing else None,
        args.argmax,
        "int8" if args.int8 else "float16" if args.half else "float32",
    )
    out = out_file(args, FORMATS[args.to].suffix)
    if args.most < 1:
        raise UserError(f"--most {args.most}: at least one picture is compared")
    pictures = pictures_of(args.pictures, form.size, len(mean), facts, args.most)
    normalise = Normalised(mean, std)
    ranges = []
    if args.int8:
        found = pictures_of(args.int8, form.size, len(mean), facts, MOST_CALIBRATION)
        ranges = [(p if args.with_preprocessing else normalise(p)).numpy() for p in found]
    known = facts_for_export(state, network.spec, facts, count, mean, std)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export.") as folder:
        file = Path(folder, out.name)
        log.info("%s", write(seen, form, args.to, file, ranges))
        write_facts(args.to, file, form, known)
        compared = compare(seen, ExportedFile(file, form, known["spec"]), [normalise(p) for p in pictures], count)
        log.info("%s", compared)
        if reason := compared.refused(form.precision):
            if not args.force:
                raise UserError(f"{out}: not written: {reason} (--force writes it all the same)")
            log.warning("%s: %s; written since --force says so", out, reason)
        for part in sorted(Path(folder).iterdir()):
            os.replace(part, out.with_name(part.name))
    described = "any size" if form.size is None else f"{form.size[0]}x{form.size[1]}"
    log.info("written: %s, pictures %s of %s -> %s", out, "uint8" if form.mean else "float32", described, form.output)
    log.info("score it: python -m tool.test --checkpoint %s data.root=FOLDER", out)
    return 0


def arguments() -> cli.Parser:
    """Build the parser of the command."""
    parser = cli.Parser(
        prog="python -m tool.export",
        description=__doc__,
        example="python -m tool.export last.pth --to onnx --size 512 1024 --out net.onnx",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of ours, or a published one; hf://OWNER/NAME")
    parser.add_argument("--to", required=True, choices=(*FORMATS, WEIGHTS), help="the format")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help="of the pictures (default: test.window)")
    size.add_argument("--dynamic", action="store_true", help="pictures of any size")
    parser.add_argument("--with-preprocessing", action="store_true", help="take uint8 R, G, B, and normalise them")
    parser.add_argument("--argmax", action="store_true", help="give classes uint8, not logits")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--half", action="store_true", help="float16")
    precision.add_argument("--int8", metavar="DATA", help="8 bits; a folder of pictures whose ranges are measured")
    parser.add_argument("--pictures", metavar="FOLDER", help="pictures to compare on (default: drawn street scenes)")
    parser.add_argument("--most", type=int, default=MOST, metavar="N", help=f"of these pictures (default {MOST})")
    parser.add_argument("--force", action="store_true", help="keep a file that differs")
    plugins.add_argument(parser)
    parser.add_argument("--out", metavar="FILE", help="what to write (default: the checkpoint's name)")
    return parser


def out_file(args: argparse.Namespace, suffix: str) -> Path:
    """Return the file to write, whose folder is there.

    Raises:
        UserError: it would overwrite the checkpoint, or its suffix is of another format.
    """
    out = Path(args.out) if args.out else Path(args.checkpoint).with_suffix(suffix)
    if out.suffix != suffix:
        raise UserError(f"--out {out}: a file of {args.to} ends in {suffix}, by which it is known")
    if out.resolve() == Path(args.checkpoint).resolve():
        raise UserError(f"{out}: would overwrite the checkpoint; name another file with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def export_weights(args: argparse.Namespace) -> int:
    """Write weights and facts alone, and read them again."""
    given = [f"--{name}" for name in ("size", "dynamic", "with_preprocessing", "argmax", "int8", "pictures", "force")]
    given = [name for name in given if getattr(args, name.removeprefix("--"))]
    if given:
        raise UserError(f"{given[0].replace('_', '-')}: not for --to weights, which holds no computation")
    out = out_file(args, ".safetensors")
    state = read_ours(args.checkpoint)
    if "export" in state:
        raise UserError(f"{args.checkpoint}: is exported; its weights are in the checkpoint that it comes from")
    rebuild(state, args.checkpoint)
    state = state | ({"config": slim_config(state["config"])} if "config" in state else {})
    if args.half:
        weights = {k: v.half() if v.is_floating_point() else v for k, v in state["model"].items()}
        if far := [name for name, value in weights.items() if not torch.isfinite(value).all()]:
            raise UserError(f"--half: {far[0]} has values beyond float16")
        state["model"] = weights
    checkpoint.save_weights(out, state)
    rebuild(read_ours(out), out)
    before, after = (Path(file).stat().st_size / 2**20 for file in (args.checkpoint, out))
    log.info("written: %s, %.1f MiB (the checkpoint: %.1f MiB)", out, after, before)
    return 0


def size_of(args: argparse.Namespace, state: dict, facts: Facts) -> tuple[int, int] | None:
    """Return the size (H, W) of the pictures; None for any.

    Raises:
        UserError: nobody says it.
    """
    if args.dynamic:
        return None
    if args.size:
        if min(args.size) < 1:
            raise UserError(f"--size {args.size[0]} {args.size[1]}: a picture has at least one pixel")
        return tuple(args.size)
    window = (facts.protocol or {}).get("window")
    crop = state.get("config", {}).get("augment", {}).get("crop")
    for value in (window, crop):
        if isinstance(value, list | tuple) and len(value) == 2:
            return int(value[0]), int(value[1])
    raise UserError(f"{args.checkpoint} says no window and no crop; give --size H W, or --dynamic")


def facts_for_export(
    state: dict, spec: dict, facts: Facts, count: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Any]:
    """Return what the exported file knows.

    That is what the checkpoint knows, for R, G, B and the classes that the file gives.
    """
    preprocessing = {"mean": list(mean), "std": list(std), "channel_order": "rgb"}
    entries = facts.entries() | {"spec": spec | {"num_classes": count}}
    entries["preprocessing"] = entries.get("preprocessing", {}) | preprocessing
    for name in ("classes", "colors"):
        if name in entries:
            entries[name] = entries[name][:count]
    if "config" in state:
        entries["config"] = slim_config(state["config"])
    return entries | {"version": version()}


def pictures_of(
    folder: str | None, size: tuple[int, int] | None, channels: int, facts: Facts, most: int
) -> list[Tensor]:
    """Return pictures uint8 (1,C,H,W): of a folder, or drawn ones.

    Args:
        size: (H, W) that they are resized to; None leaves them, but for large ones.

    Raises:
        FileNotFoundError, UserError: there is no such folder, or no picture in it; or none can be drawn.
    """
    if folder is None:
        if channels != 3:
            raise UserError(f"the network sees {channels} channels, and drawn scenes have 3; give --pictures FOLDER")
        rng = np.random.default_rng(0)
        sizes = [(max(size[0], 32), max(size[1], 32))] * 2 if size else DRAWN
        images = [draw_scene(rng, *each)[0] for each in sizes]
    else:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        files = pictures_in(Path(folder))
        chosen = files[:: -(-len(files) // most)]
        images = [read_image(file, None, channels, facts.limits) for file in chosen]
    return [torch.from_numpy(fitted(image, size)).permute(2, 0, 1)[None].contiguous() for image in images]


def fitted(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Resize a picture (H,W,C) to `size`.

    Without one it is shrunk until its longer side has at most LONGEST pixels.
    """
    if size is None:
        return shrink(image, LONGEST)
    if size == image.shape[:2]:
        return image
    resized = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return resized.reshape(*size, -1)


class Normalised:
    """Normalises pictures uint8 (N,C,H,W) by mean and std of the channels."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, pictures: Tensor) -> Tensor:
        return (pictures.float() - self.mean) / self.std


@dataclass(frozen=True)
class Compared:
    """How an exported file and the network differ, on pictures.

    difference: the largest of the logits, as a share of the largest logit; None where the file gives classes. own: how
    much the network differs from itself when the input is off by one rounding, on the same scale; None where that is
    less than float32 allows. equal: share of pixels of the same class. mIoU: of the
    file's classes, the network's as the truth. seconds: of one picture, the network and the file.
    """

    pictures: int
    difference: float | None
    own: float | None
    equal: float
    mIoU: float
    seconds: tuple[float, float]

    def __str__(self) -> str:
        said = "" if self.difference is None else f"largest difference {self.difference:.1e} of the largest logit, "
        if self.own is not None:
            said += f"the network's own where an input is off by one rounding {self.own:.1e}, "
        torch_ms, file_ms = (f"{1000 * value:.1f}" for value in self.seconds)
        return (
            f"compared on {self.pictures} pictures: {said}{100 * self.equal:.3f} % equal classes, mIoU {self.mIoU:.4f} "
            f"against the network's classes; a picture takes {file_ms} ms, in torch {torch_ms} ms"
        )

    def refused(self, precision: str) -> str | None:
        """Return why such a file is not kept; None if it is.

        No file comes nearer to a network than the network, rounded otherwise, comes to itself. That is far off where it
        jumps: ENet's unpooling puts a value where the largest of four was, and in even sky they are all the same.
        """
        largest, least = BOUNDS[precision]
        largest = max(largest, self.own or 0.0)
        if self.difference is not None and not self.difference <= largest:
            return f"its logits differ by {self.difference:.1e} of the largest, {precision} allows {largest:g}"
        if not self.equal >= least:
            return f"{100 * self.equal:.2f} % of the classes are equal, {precision} asks for {100 * least:g} %"
        return None


@torch.no_grad()
def compare(network: nn.Module, file: ExportedFile, pictures: list[Tensor], num_classes: int) -> Compared:
    """Compare an exported file with its network.

    pictures: normalised (1,C,H,W). The first goes with its mirror image, as a batch of two.
    """
    confusion = ConfusionMatrix(num_classes)
    difference = largest = own = 0.0
    for batch in (torch.cat([pictures[0], pictures[0].flip(-1)]), *pictures[1:]):
        expected, found = network(batch)["out"], file(batch)["out"]
        if found.shape != expected.shape:
            raise UserError(f"the file gives {tuple(found.shape)}, the network {tuple(expected.shape)}")
        for whose, values in (("network", expected), ("file", found)):
            if not torch.isfinite(values).all():
                raise UserError(f"the {whose}'s output is not finite; check the weights, or another precision")
        apart = float((found - expected).abs().max())
        bound = BOUNDS["float32"][0] * float(expected.abs().max())
        if apart > bound and not file.gives_classes:
            own = max(own, float((network(off_by_one_rounding(batch))["out"] - expected).abs().max()))
        difference, largest = max(difference, apart), max(largest, float(expected.abs().max()))
        confusion.update(found.argmax(1), expected.argmax(1))
    scores = confusion.result()
    first = pictures[0]
    seconds = seconds_of(lambda: network(first)), seconds_of(lambda: file(first))
    difference, own = (value / max(largest, 1e-12) for value in (difference, own))
    return Compared(
        len(pictures),
        None if file.gives_classes else difference,
        own if own > BOUNDS["float32"][0] else None,
        scores.allAcc,
        scores.mIoU,
        seconds,
    )


def off_by_one_rounding(values: Tensor) -> Tensor:
    """Return the values, half of them one rounding larger."""
    chosen = torch.rand(values.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    return torch.where(chosen, torch.nextafter(values, torch.tensor(torch.inf)), values)


def seconds_of(call: Callable[[], object]) -> float:
    """Return the median time of a call, after a first one."""
    call()
    taken = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


if __name__ == "__main__":
    cli.command(main, on_memory="use a smaller --size")
