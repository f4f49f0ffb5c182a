"""Packs the decoded pictures and training ids of a data set into one file a split.

    python -m tool.pack cityscapes --root /data/cityscapes
    python -m tool.pack cityscapes --root /data/cityscapes --split train --codec lz4 --out /ssd/cityscapes
    python -m tool.pack --config config/mine/mine_fcn18.yaml      # your own data, as the experiment has it
    python -m tool.pack cityscapes --root /data/cityscapes --verify

Training reads them with loader.packed=FOLDER (the folder of --out, or DIR/packed; loader.packed=auto finds the latter).
A killed packing goes on with the same command. The files of the data set must stay: they are not read in training,
but packed data that no longer fit them are refused.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from dataset import build_dataset
from dataset.prepare.check import check_dataset
from dataset.prepare.pack import pack
from dataset.read import packed
from util.config.load import load_config

SPLITS = ("train", "val", "test")


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 2 after a message about what is missing or wrong."""
    args = _parse(argv)
    try:
        for split in args.split or _splits_with_list(args):
            print(_verify(args, split) if args.verify else _pack(args, split), flush=True)
    except (ValueError, OSError) as error:
        print(f"tool.pack: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tool.pack: interrupted; the same command goes on behind what is written", file=sys.stderr)
        return 130
    return 0


def _pack(args: argparse.Namespace, split: str) -> str:
    dataset = _dataset(args, split)
    check_dataset(dataset)
    with tqdm(total=len(dataset), desc=f"packing {split}", unit="picture", file=sys.stderr) as bar:
        index = pack(dataset, _folder(args), args.codec, args.workers, lambda done, _: bar.update(done - bar.n))
    path = packed.index_file(_folder(args), split)
    return f"{split}: {len(dataset)} pictures, {index.size / 1e9:.2f} GB, {index.codec}: {path}"


def _verify(args: argparse.Namespace, split: str) -> str:
    path = packed.index_file(_folder(args), split)
    packed.Packed(_folder(args), _dataset(args, split))  # raises if the files have changed
    return f"{split}: all {packed.verify(_folder(args), split)} packed pictures are as they were written: {path}"


def _dataset(args: argparse.Namespace, split: str):
    if args.config is None:
        return build_dataset(args.dataset, args.root, split=split)
    data = args.config.data
    return build_dataset(
        data.name,
        data.root,
        getattr(data, f"{split}_list", None),
        split,
        classes=data.classes,
        label_map=data.label_map,
    )


def _root(args: argparse.Namespace) -> Path:
    return Path(args.root if args.config is None else args.config.data.root).expanduser()


def _folder(args: argparse.Namespace) -> Path:
    return Path(args.out).expanduser() if args.out else _root(args) / "packed"


def _splits_with_list(args: argparse.Namespace) -> list[str]:
    """The splits whose list is there, or, to verify them, those that are packed."""

    def named(split: str) -> bool:
        return args.config is not None and getattr(args.config.data, f"{split}_list") is not None

    present: Callable[[str], bool] = (
        (lambda split: packed.index_file(_folder(args), split).is_file())
        if args.verify
        else (lambda split: named(split) or (_root(args) / f"{split}.txt").is_file())
    )
    splits = [split for split in SPLITS if present(split)]
    if not splits:
        raise FileNotFoundError(
            f"{_folder(args)}: nothing is packed there"
            if args.verify
            else f"{_root(args)}: no list file there; write the lists first, for a known data set by "
            "`python -m tool.prepare <dataset> --root DIR`"
        )
    return splits


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tool.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", nargs="?", help="a known data set, with its lists in --root")
    parser.add_argument("--root", metavar="DIR", help="folder of the data set")
    parser.add_argument("--config", metavar="FILE", help="an experiment, whose data are packed instead")
    parser.add_argument("--split", nargs="+", metavar="SPLIT", help="which (default: all that have a list)")
    parser.add_argument("--codec", choices=packed.CODECS, default="raw", help="raw: fastest; lz4: smaller")
    parser.add_argument("--out", metavar="DIR", help="folder for the packed data (default: packed/ in the root)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--verify", action="store_true", help="write nothing; read all packed data once and compare")
    args = parser.parse_args(argv)
    if (args.config is None) == (args.dataset is None or args.root is None):
        parser.error("give a data set and --root DIR, or --config FILE")
    if args.config is not None:
        try:
            args.config = load_config(args.config)
        except ValueError as error:
            parser.error(str(error))
    return args


if __name__ == "__main__":
    sys.exit(main())
