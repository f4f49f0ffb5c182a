"""Measures what an experiment costs, and against plain ways.

    python -m tool.bench params DATASET EXPERIMENT [--size H W] [--json FILE] [section.key=value ...]
    python -m tool.bench data DATASET EXPERIMENT [--pictures FOLDER] [--baseline semseg|sfsegnets|pil] [--workers N] ...
    python -m tool.bench lists [--samples N ...] [--check N ...] [--rounds N] [--json FILE]
    python -m tool.bench eval DATASET EXPERIMENT [--size H W] [--picture FILE] [--threads N] [--grow] ...
    python -m tool.bench train DATASET EXPERIMENT [--size H W] [--batch N] [--threads N] [--compile] ...
    python -m tool.bench infer DATASET EXPERIMENT [--size H W] [--batch N] [--threads N] [--checkpoint FILE]
                               [--engines NAME,...] [--grow] [--rounds N] [--json FILE] [section.key=value ...]
    python -m tool.bench overfit NAME ... [--backbone NAME] [--size H W] [--steps N] [--lr RATE]
    python -m tool.bench page > docs/performance.md

`params` counts parameters and multiply-accumulates (MACs) for one picture of any size; nothing is computed
and no data is needed. docs/benchmark.md says what is counted and compares it with published figures. `data` times
the training samples, from files and packed, against the older pipelines; `lists` what a list of many samples costs
before the first step. `eval` measures evaluation outside
the network against the ways of older repositories. `train` runs the training step against the obvious loop.
`overfit` has networks learn one drawn scene by heart, which a wrong gradient prevents.
`infer` times one forward pass: as PyTorch runs it plainly, and in every faster way that this machine has. `page`
writes the page of the measurements that --json left in docs/performance/.
"""

from tool.bench import data, evaluate, infer, lists, overfit, params, report, train
from tool.shared import cli
from util.record.log import open_log

COMMANDS = (data, evaluate, infer, lists, overfit, params, train, report)


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python -m tool.bench", description=__doc__, example="python -m tool.bench infer street sfnet_mobile"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    args, rest = parser.parse_known_args(argv)  # argparse gives up on overrides that follow an option
    if unknown := [word for word in rest if word.startswith("-")]:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    args.overrides += rest
    open_log(None)
    return args.run(args)
