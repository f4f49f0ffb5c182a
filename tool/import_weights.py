"""Turns a published checkpoint into one of ours.

Ours knows its network, preprocessing and classes.

    python -m tool.import_weights FILE [--out FILE] [--classes DATASET] [option=value ...]

The family and the network are recognised from the names and shapes in FILE (.pth or .safetensors); every tensor must
find its place. Options are for what the weights do not tell: output_stride=8, align_corners=true. The result holds
what its family makes of an image, and the class names and colours of the data set it was trained on; --classes names
another data set, or the classes themselves: --classes road,car,sky. tool.test scores it, tool.demo draws with it, and
model.init starts a training from it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataset import DATASETS
from model.published import layout_of
from tool.shared import cli
from tool.shared.experiment import config_folders
from tool.shared.plugins import load
from tool.shared.published import Translated, is_void, translate
from util import UserError, checkpoint
from util.config.yamltext import parse_yaml
from util.record.log import log, open_log


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python -m tool.import_weights", description=__doc__, example="python -m tool.import_weights FILE.pth"
    )
    parser.add_argument("file", metavar="FILE", help="the published checkpoint")
    parser.add_argument("--out", metavar="FILE", help="what to write (default: FILE's name, _imported.pth)")
    parser.add_argument(
        "--classes",
        "--dataset",
        metavar="DATASET",
        help="data set whose class names and colours to store, or the names, with commas between",
    )
    parser.add_argument("options", nargs="*", metavar="option=value", help="of the network, e.g. output_stride=8")
    args = parser.parse_intermixed_args(argv)
    open_log(None)
    source = Path(args.file)
    out = Path(args.out) if args.out else source.with_name(f"{source.stem}_imported.pth")
    state = checkpoint.load(source)
    if checkpoint.is_ours(state):
        raise UserError(f"{source}: is in this project's format already; tool.test --checkpoint takes it")
    if out.resolve() == source.resolve():
        raise UserError(f"{out}: would overwrite the published file; name another with --out")
    options = dict(read_option(pair) for pair in args.options)
    translated = translate(state, source, options, read_classes(args.classes))
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(out, translated.entries())
    for line in summary(translated, set(options)):
        log.info("%s", line)
    log.info("written: %s", out)
    log.info("score it: python -m tool.test --checkpoint %s data.root=FOLDER", out)
    if path := experiment_of_network(translated.facts.dataset or "custom", translated.model.spec):
        told = "with the protocol of its experiment: python -m tool.test --config %s --checkpoint %s data.root=FOLDER"
        log.info(told, path, out)
    return 0


def read_option(pair: str) -> tuple[str, object]:
    """Name and value of an `option=value` argument; values are read as YAML."""
    name, equals, text = pair.partition("=")
    if not equals or not name:
        raise UserError(f"option '{pair}': expected option=value, for example output_stride=8")
    return name, parse_yaml(text, f"option '{pair}'")


def read_classes(text: str | None) -> str | list[str] | None:
    """Return the data set's name, or the class names, of --classes."""
    if text is None or text in DATASETS or "," not in text:
        return text
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"--classes {text}: a name is empty, or stands there twice")
    return names


def experiment_of_network(dataset: str, spec: Mapping[str, Any]) -> Path | None:
    """Find the experiment of a data set with this network."""
    for path in (path for root in config_folders() for path in sorted((root / dataset).glob(f"{dataset}_*.yaml"))):
        model = load(path).config.model
        same = (model.name, model.backbone) == (spec["name"], spec["backbone"])
        if same and all(spec["options"].get(name) == value for name, value in model.options.items()):
            return path
    return None


def summary(translated: Translated, given: set[str]) -> list[str]:
    """List what the file holds, lacks, and gets beside it.

    Lacks: what its weights do not tell.

    Args:
        given: names of the options that the user has given.
    """
    found, facts, origin = translated.found, translated.facts, translated.origin
    said = "".join(f", {name} {origin[name]:g}" for name in ("mean_iu", "epoch") if name in origin)
    spec = translated.model.spec
    options = ", ".join(f"{name}={value}" for name, value in spec["options"].items())
    on = f" on {found.backbone}" if found.backbone else ""
    lines = [
        f"{origin['file']}: sha256 {origin['sha256']}{said}",
        f"network: {found.model}{on}, {found.num_classes} classes ({options})",
        f"weights: {translated.report}",
    ]
    if untold := {name: value for name, value in translated.untold.items() if name not in given}:
        values = ", ".join(f"{name}={value}" for name, value in untold.items())
        why = f" ({why})" if (why := layout_of(found.family).untold) else ""
        lines.append(f"not in the weights, the family's default: {values}{why}; import with {values} to change it")
    lines.append(
        f"preprocessing: mean {_short(facts.mean)}, std {_short(facts.std)} (R, G, B of 0..255), "
        f"channels {facts.channel_order}"
    )
    names = ", ".join(facts.classes[:3])
    void = f", ..., {facts.classes[-1]} for what is ignored" if is_void(facts.classes) else ", ..."
    reason = f"; {translated.known}" if translated.known else ""
    lines.append(f"classes: those of {facts.dataset} ({names}{void}){reason}")
    return lines


def _short(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:.7g}" for value in values) + "]"


if __name__ == "__main__":
    cli.command(main)
