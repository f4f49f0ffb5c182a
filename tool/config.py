"""Prints a resolved experiment as YAML.

Behind each value stands where it comes from.

    python -m tool.config cityscapes sfnet101 [section.key=value ...]
    python -m tool.config --config FILE [section.key=value ...]

A value comes from a file, from the command line, from the test protocol, or is the default.
"""

from tool.shared import cli
from tool.shared.experiment import find_experiment
from tool.shared.plugins import load
from util import UserError
from util.config.load import describe


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python -m tool.config", description=__doc__, example="python -m tool.config cityscapes sfnet101"
    )
    parser.add_argument("--config", metavar="FILE", help="the experiment, instead of its name")
    parser.add_argument("words", nargs="*", metavar="DATASET EXPERIMENT section.key=value")
    args = parser.parse_intermixed_args(argv)
    path, overrides = args.config, args.words
    if path is None:
        if len(overrides) < 2 or "=" in overrides[0] + overrides[1]:
            raise UserError(f"which experiment? Write for example: {parser.example}")
        path, overrides = find_experiment(*overrides[:2]), overrides[2:]
    experiment = load(path, overrides)
    for note in experiment.notes:
        print(f"# {note}")
    print(describe(experiment), end="")
    return 0


if __name__ == "__main__":
    cli.command(main)
