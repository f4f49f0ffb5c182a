"""Predicts pictures with a checkpoint alone.

    python -m tool.demo photo.jpg holiday/ --checkpoint exp/cityscapes/sfnet101/model/last.pth
    python -m tool.demo photo.jpg --checkpoint FILE --flow

For each picture, photo | prediction with the classes' names is written to the folder --out. --flow adds what
the network does inside: the flow fields of Semantic Flow, the gates and the sketch of Sketch-and-Fill. A
published checkpoint is imported first: python -m tool.import_weights FILE.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dataset.read import DataError
from dataset.read.image import read_image
from model.inference.adapt import Adapted
from tool.shared import cli, plugins, segmenter
from tool.shared.network import rebuild, whole_pictures
from tool.shared.pictures import name_results, shrink
from tool.shared.published import read_ours
from util import UserError, dist
from util.checkpoint.facts import facts_of
from util.record.files import write_bytes
from util.record.log import log, open_log
from util.report.panels import sheet
from util.report.visual import png, triptych
from util.score.predict import Predictor

SHOWN = 5  # pictures that could not be read


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python -m tool.demo", description=__doc__, example="python -m tool.demo photo.jpg --checkpoint FILE"
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture, or folder of pictures")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="of ours, or imported")
    parser.add_argument("--out", default="exp/demo", metavar="DIR", help="of the results (default: exp/demo)")
    parser.add_argument("--flow", action="store_true", help="also draw flow fields, or gates and sketch")
    parser.add_argument(
        "--longest",
        type=int,
        default=2048,
        metavar="PIXELS",
        help="longer side that larger pictures are shrunk to (default: 2048)",
    )
    plugins.add_argument(parser)
    args = parser.parse_intermixed_args(argv)
    open_log(None)
    plugins.use(args.plugin)
    if args.longest < 1:
        raise UserError(f"--longest {args.longest}: a picture has at least one pixel")
    targets = name_results(args.pictures, Path(args.out))
    state = load_state(args.checkpoint)
    predictor = predictor_of(state, args.checkpoint, dist.init())
    if args.flow:
        check_flow(predictor.model, args.checkpoint)
    channels, limits = len(predictor.mean), facts_of(state).limits
    errors = []
    for target, path in targets.items():
        try:
            image = shrink(read_image(path, None, channels, limits), args.longest)
        except (DataError, OSError) as error:
            errors.append(str(error))
            continue
        log.info("%s -> %s", path, draw(image, target, predictor, state, args))
    if errors:
        more = f"; and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
        shown = "; ".join(errors[:SHOWN])
        raise UserError(f"{len(errors)} of {len(targets)} pictures could not be read: {shown}{more}")
    return 0


def load_state(file: str) -> dict:
    """Read the checkpoint.

    Raises:
        FileNotFoundError, UserError: the file is missing, damaged, or of no known family.
    """
    state = read_ours(file)
    if absent := [key for key in ("classes", "colors") if key not in state]:
        raise UserError(f"{file}: holds no {' and '.join(absent)}")
    return state


def predictor_of(state: dict, file: str, device: torch.device) -> Predictor:
    """Build the predictor of the checkpoint's network.

    It sees whole pictures at one scale, normalised as it was trained.
    """
    return segmenter.predictor_of(rebuild(state, file), facts_of(state), whole_pictures(), device)


def check_flow(model: nn.Module, file: str) -> None:
    """Refuse a network with nothing inside to draw."""
    model = model.model if isinstance(model, Adapted) else model
    if not hasattr(model, "flow_fields") and not hasattr(model, "gates_and_sketch"):
        raise UserError(
            f"--flow draws the flow of semanticflow and semanticflow_lite, and the gates of sketchfill; "
            f"{file} holds {model.spec['name']}"
        )


def draw(image: np.ndarray, target: Path, predictor: Predictor, state: dict, args: argparse.Namespace) -> str:
    """Predict one picture and write the result; return a log line."""
    start = time.perf_counter()
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    prediction = predictor(tensor).cpu().numpy()
    seconds = time.perf_counter() - start
    colors = np.array(state["colors"], np.uint8)
    if args.flow:
        picture = sheet(image, prediction, colors, state["classes"], look_inside(predictor, tensor))
    else:
        picture = triptych(image, None, prediction, colors, state["classes"])
    write_bytes(target, png(picture), parents=True)
    return f"{target} ({image.shape[0]} x {image.shape[1]}, {seconds:.2f} s)"


def look_inside(predictor: Predictor, image: torch.Tensor) -> dict[str, list]:
    """Return flow fields, or gates and sketch, of a picture.

    image: uint8 (3, H, W); float arrays. {"flow": arrays (2, h, w) from coarse to fine}, called "dual flow" where a
    pair of maps is aligned, or {"sketch": [array (C, h, w)], "gate": arrays (C, h, w) from coarse to fine}.
    """
    batch = (image.to(predictor.device).float() - predictor.mean).div_(predictor.std)[None]
    network = predictor.model
    if isinstance(network, Adapted):
        network, batch = network.model, network.ordered(batch)
    with torch.inference_mode():
        if hasattr(network, "flow_fields"):
            kind = "dual flow" if network.spec["name"] == "semanticflow_lite" else "flow"
            maps = {kind: network.flow_fields(batch)}
        else:
            gates, sketches = zip(*network.gates_and_sketch(batch), strict=True)
            maps = {"sketch": sketches[:1], "gate": gates}
        return {name: [value[0].float().cpu().numpy() for value in values] for name, values in maps.items()}


if __name__ == "__main__":
    cli.command(main)
