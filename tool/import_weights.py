"""Turns a published checkpoint into one of ours, which knows its network, classes and colours.

    python -m tool.import_weights FILE [--out FILE] [--dataset NAME] [option=value ...]

The family and the network are recognised from the names and shapes in FILE; every tensor must find its place.
Options are for what the weights do not tell: output_stride=8, flow_align_corners=false. The result holds the
class names and colours of data set NAME (default: the published one of that number of classes); it is scored
by tool.test, drawn by tool.demo, and trained from as model.init.
"""

import argparse
import difflib
from pathlib import Path
from typing import NamedTuple

from torch import nn

from dataset import DATASETS, dataset_class
from model import build_model
from model.published import LoadReport, Recognised, load_published, recognise_family
from tool.shared import cli
from util import UserError, checkpoint
from util.config.load import load
from util.config.yamltext import parse_yaml
from util.record.files import sha256
from util.record.log import log, open_log

# The published networks' data sets by number of classes.
PUBLISHED_ON = {11: "camvid", 19: "cityscapes", 24: "rugd", 150: "ade20k"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tool.import_weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE", help="the published checkpoint")
    parser.add_argument("--out", metavar="FILE", help="what to write (default: FILE's name, _imported.pth)")
    parser.add_argument("--dataset", metavar="NAME", help="whose class names and colours to store")
    parser.add_argument("options", nargs="*", metavar="option=value", help="of the network, e.g. output_stride=8")
    args = parser.parse_intermixed_args(argv)
    open_log(None)
    source = Path(args.file)
    out = Path(args.out) if args.out else source.with_name(f"{source.stem}_imported.pth")
    state = checkpoint.load(source)
    refuse(state, source, out)
    found, model, report = build(state, source, dict(read_option(pair) for pair in args.options))
    facts = dataset_facts(args.dataset, found.num_classes)
    origin = {"file": source.name, "sha256": sha256(source), "family": found.family, **training_facts(state)}
    write(out, model, facts, origin)
    for line in summary(found, model, report, origin):
        log.info("%s", line)
    log.info("classes: those of %s (%s, ...)", facts.dataset, ", ".join(facts.classes[:3]))
    log.info("written: %s", out)
    log.info("score it: %s", scoring_command(facts.dataset, found, out))
    return 0


def read_option(pair: str) -> tuple[str, object]:
    """Name and value of an `option=value` argument; values are read as YAML."""
    name, equals, text = pair.partition("=")
    if not equals or not name:
        raise UserError(f"option '{pair}': expected option=value, for example output_stride=8")
    return name, parse_yaml(text, f"option '{pair}'")


def refuse(state: object, source: Path, out: Path) -> None:
    """Raises ValueError where there is nothing to import, or the source would be overwritten."""
    if checkpoint.is_ours(state):
        raise UserError(f"{source}: is in this project's format already; tool.test --checkpoint takes it")
    if out.resolve() == source.resolve():
        raise UserError(f"{out}: would overwrite the published file; name another with --out")


def build(state: dict, source: Path, options: dict) -> tuple[Recognised, nn.Module, LoadReport]:
    """What `state` holds, its network with the weights in place, and what became of each tensor.

    Raises:
        ValueError: naming `source`: it is of no known family, has a backbone alone, or does not fit.
    """
    try:
        found = recognise_family(state)
        if found.model is None:
            raise UserError(
                f"holds a backbone alone ({found.family}); name it as model.weights of an experiment whose "
                f"model.backbone is {found.backbone}"
            )
        model = build_model(found.model, found.num_classes, found.backbone, **(found.options | options))
        return found, model, load_published(model, state)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None


class Facts(NamedTuple):
    """What a checkpoint says of the data set: name, class names, RGB colours."""

    dataset: str
    classes: list[str]
    colors: list[list[int]]


def dataset_facts(name: str | None, num_classes: int) -> Facts:
    """Facts of the data set that the network was trained on: of `name`, or of that number of classes.

    Raises:
        ValueError: the data set has another number of classes, or none is known for that number.
    """
    if name is None and num_classes not in PUBLISHED_ON:
        raise UserError(f"no published data set of {num_classes} classes is known; name one with --dataset")
    name = name or PUBLISHED_ON[num_classes]
    kind = dataset_class(name)
    if len(kind.classes) != num_classes:
        counts = {other: len(dataset_class(other).classes) for other in DATASETS}
        fitting = ", ".join(other for other, number in counts.items() if number == num_classes) or "none"
        raise UserError(
            f"the network has {num_classes} classes, data set {name} {len(kind.classes)}; "
            f"data sets of {num_classes}: {fitting}"
        )
    return Facts(name, list(kind.classes), [[int(value) for value in color] for color in kind.colors])


def training_facts(state: dict) -> dict[str, float | int]:
    """Score and epoch, where the published file says them."""
    meta = state.get("meta") if isinstance(state.get("meta"), dict) else {}
    facts = {"mean_iu": (state.get("mean_iu"), float), "epoch": (state.get("epoch", meta.get("epoch")), int)}
    return {
        name: kind(value)
        for name, (value, kind) in facts.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def write(out: Path, model: nn.Module, facts: Facts, origin: dict) -> None:
    """Writes the checkpoint, making its folder."""
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(
        out,
        {
            "model": model.state_dict(),
            "spec": model.spec,
            "classes": facts.classes,
            "colors": facts.colors,
            "provenance": origin,
        },
    )


def summary(found: Recognised, model: nn.Module, report: LoadReport, origin: dict) -> list[str]:
    """What was found in the file."""
    options = ", ".join(f"{name}={value}" for name, value in model.spec["options"].items())
    said = "".join(f", {name} {origin[name]:g}" for name in ("mean_iu", "epoch") if name in origin)
    return [
        f"{origin['file']}: sha256 {origin['sha256']}{said}",
        f"network: {found.model} on {found.backbone}, {found.num_classes} classes ({options})",
        f"weights: {report}",
    ]


def scoring_command(dataset: str, found: Recognised, out: Path, root: Path = Path("config")) -> str:
    """The command that scores the file, with the experiment of that data set nearest to the network."""
    paths = sorted((root / dataset).glob(f"{dataset}_*.yaml"))
    if not paths:
        return f"python -m tool.test --config YOUR_EXPERIMENT_ON_{dataset.upper()}.yaml --checkpoint {out}"

    def distance(path: Path) -> tuple[bool, bool, float]:
        model = load(path).config.model
        likeness = difflib.SequenceMatcher(None, model.backbone or "", found.backbone).ratio()
        return model.name != found.model, model.backbone != found.backbone, -likeness

    best = min(paths, key=distance)
    command = f"python -m tool.test --config {best} --checkpoint {out} data.root=FOLDER"
    if distance(best)[0]:  # another network's protocol
        command += " test.protocol=whole test.scales=[1.0] test.flip=false test.window=none"
    return command


if __name__ == "__main__":
    cli.command(main)
