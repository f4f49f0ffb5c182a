"""Arguments and experiment that the subcommands share."""

import argparse
from collections.abc import Callable

import torch

from dataset import dataset_class
from dataset.base import check_classes
from tool.shared.experiment import find_experiment
from tool.shared.plugins import load
from util import UserError
from util.config.schema import Config


def common_arguments(commands, name: str, run, text: str) -> argparse.ArgumentParser:
    """Add and return the parser of a subcommand that `run` answers."""
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("dataset")
    parser.add_argument("experiment")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.set_defaults(run=run)
    return parser


def size_argument(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help=f"of the picture (default: {default})")


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return `size`, if there is a pixel in it."""
    if min(size) < 1:
        raise UserError(f"--size {size[0]} {size[1]}: a picture has at least one pixel")
    return size


def rounds_argument(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--rounds",
        type=_positive,
        default=default,
        metavar="N",
        help=f"how often each contender runs, in turn with the others (default {default})",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return int(text)


def experiment_of(args: argparse.Namespace) -> Config:
    """Return the checked config that a subcommand names."""
    path = find_experiment(args.dataset, args.experiment)
    return load(path, args.overrides).config


def class_count(config: Config) -> int:
    """Return the number of classes; no data is read."""
    classes = config.data.classes or dataset_class(config.data.name).classes
    check_classes(classes, config.data.name)
    return len(classes)


def full_float32(full: bool) -> None:
    """Have a GPU compute float32 in full, or in TF32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not full


def in_precision(full: bool, function: Callable) -> Callable:
    """Return `function` run in TF32 or full float32, full afterwards."""

    def run(*args):
        full_float32(full)
        result = function(*args)
        full_float32(True)
        return result

    return run
