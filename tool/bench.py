"""Measures an experiment's network.

    python -m tool.bench params DATASET EXPERIMENT [--size H W] [--json FILE] [section.key=value ...]

`params` counts parameters and multiply-accumulates (MACs) for one picture of any size; nothing is computed
and no data is needed. docs/benchmark.md says what is counted and compares it with published figures.
"""

import argparse
from pathlib import Path

from dataset import dataset_class
from dataset.base import check_classes
from tool import common
from tool.launch import find_experiment
from util.config import Config
from util.flops import COUNTED, NOT_COUNTED, Cost, count
from util.log import open_log, versions, write_json


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tool.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_params(commands)
    args, rest = parser.parse_known_args(argv)  # argparse gives up on overrides that follow an option
    if unknown := [word for word in rest if word.startswith("-")]:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    args.overrides += rest
    open_log(None)
    return args.run(args)


def _add_command(commands, name: str, run, text: str) -> argparse.ArgumentParser:
    """The parser of a subcommand on one experiment; `run(args)` gives the exit status."""
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("dataset")
    parser.add_argument("experiment")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.set_defaults(run=run)
    return parser


def _add_params(commands) -> None:
    text = "parameters and multiply-accumulates for one picture in evaluation"
    parser = _add_command(commands, "params", params, text)
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("H", "W"), help="of the picture (default: data.crop)"
    )


def params(args: argparse.Namespace) -> int:
    """Counts and prints; see the module's description."""
    config = experiment_of(args)
    size = tuple(args.size or config.data.crop)
    if min(size) < 1:
        raise ValueError(f"--size {size[0]} {size[1]}: a picture has at least one pixel")
    model = common.network_of(config, class_count(config))
    cost = count(model, size)
    print(params_text(f"{args.dataset} {args.experiment}", model.spec, size, cost))
    if args.json:
        write_figures(args.json, params_figures(args, model.spec, size, cost))
    return 0


def experiment_of(args: argparse.Namespace) -> Config:
    """The checked config of the experiment that a subcommand names."""
    path = find_experiment(args.dataset, args.experiment)
    return common.load_experiment(str(path), args.overrides)[0]


def class_count(config: Config) -> int:
    """Number of classes, from the experiment or the data set's facts; no file of the data set is read."""
    classes = config.data.classes or dataset_class(config.data.name).classes
    check_classes(classes, config.data.name)
    return len(classes)


def params_text(title: str, spec: dict, size: tuple[int, int], cost: Cost) -> str:
    """The table that `params` prints."""
    on = f" on {spec['backbone']}" if spec["backbone"] else ""
    options = ", ".join(f"{key}={value}" for key, value in spec["options"].items())
    width = max(len("parts"), *(len(part.name) for part in cost.parts))
    rows = [f"{'part':<{width}}  {'parameters':>12}  {'GMAC':>10}"]
    rule = "-" * len(rows[0])
    rows += [rule, *(_row(part.name, part.parameters, part.macs, width) for part in cost.parts), rule]
    rows.append(_row("all", cost.parameters, cost.macs, width))
    return "\n".join([
        f"{title}: {spec['name']}{on}, {spec['num_classes']} classes" + (f" ({options})" if options else ""),
        f"one picture of {size[0]} x {size[1]} (height x width), evaluation",
        "",
        *rows,
        "",
        f"parameters  {cost.parameters / 1e6:.2f} M trainable, as constructed",
        f"            {cost.reached / 1e6:.2f} M with a gradient path to the output of the evaluation",
        f"MACs        {cost.macs / 1e9:.2f} G multiply-accumulates",
        f"FLOPs       {cost.flops / 1e9:.2f} G, two for each multiply-accumulate",
        f"counted     {COUNTED}",
        f"not         {NOT_COUNTED}",
    ])


def _row(name: str, parameters: int, macs: int, width: int) -> str:
    return f"{name:<{width}}  {parameters:>12,}  {macs / 1e9:>10.3f}"


def params_figures(args: argparse.Namespace, spec: dict, size: tuple[int, int], cost: Cost) -> dict:
    """The same as plain types; numbers are exact."""
    return {
        "dataset": args.dataset,
        "experiment": args.experiment,
        "overrides": args.overrides,
        "network": spec,
        "batch_size": 1,
        "size": list(size),
        "parameters": cost.parameters,
        "parameters_reached_by_output": cost.reached,
        "macs": cost.macs,
        "flops": cost.flops,
        "parts": [vars(part) for part in cost.parts],
        "counted": COUNTED,
        "not_counted": NOT_COUNTED,
        "versions": versions(),
    }


def write_figures(path: str, figures: dict) -> None:
    """Writes JSON, making its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json(path, figures)


if __name__ == "__main__":
    common.command(main)
