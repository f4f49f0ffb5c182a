"""`params`: parameters and multiply-accumulates of a network.

Nothing is computed, no data is needed.
"""

import argparse
from pathlib import Path

from tool.bench.experiment import check_size, class_count, common_arguments, experiment_of, size_argument
from tool.bench.flops import COUNTED, NOT_COUNTED, Cost, count
from tool.shared.network import network_of
from util.record.log import write_json
from util.record.machine import versions


def add(commands) -> None:
    text = "parameters and multiply-accumulates for one picture in evaluation"
    size_argument(common_arguments(commands, "params", run, text), "augment.crop")


def run(args: argparse.Namespace) -> int:
    """Count and print; return the exit status."""
    config = experiment_of(args)
    size = check_size(tuple(args.size or config.augment.crop))
    model = network_of(config, class_count(config))
    cost = count(model, size)
    print(params_text(f"{args.dataset} {args.experiment}", model.spec, size, cost))
    if args.json:
        write_figures(args.json, params_figures(args, model.spec, size, cost))
    return 0


def params_text(title: str, spec: dict, size: tuple[int, int], cost: Cost) -> str:
    """Return the table that `params` prints."""
    on = f" on {spec['backbone']}" if spec["backbone"] else ""
    options = ", ".join(f"{key}={value}" for key, value in spec["options"].items())
    width = max(len("parts"), *(len(part.name) for part in cost.parts))
    rows = [f"{'part':<{width}}  {'parameters':>12}  {'GMAC':>10}"]
    rule = "-" * len(rows[0])
    rows += [rule, *(_row(part.name, part.parameters, part.macs, width) for part in cost.parts), rule]
    rows.append(_row("all", cost.parameters, cost.macs, width))
    return "\n".join(
        [
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
        ]
    )


def _row(name: str, parameters: int, macs: int, width: int) -> str:
    return f"{name:<{width}}  {parameters:>12,}  {macs / 1e9:>10.3f}"


def params_figures(args: argparse.Namespace, spec: dict, size: tuple[int, int], cost: Cost) -> dict:
    """Return the same as plain types; numbers are exact."""
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
    """Write JSON, making its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json(path, figures)
