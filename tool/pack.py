"""Packs a data set so that training reads without decoding.

The decoded images and training ids.

    python -m tool.pack cityscapes --root /data/cityscapes
    python -m tool.pack cityscapes --root /data/cityscapes --split train --out /ssd/cityscapes
    python -m tool.pack --config config/mine/mine_fcn18.yaml      # your own data, as the experiment has it
    python -m tool.pack cityscapes --root /data/cityscapes --verify

Training reads them with loader.packed=FOLDER (the folder of --out, or ROOT/packed, which loader.packed=auto finds).
A packing that was killed goes on with the same command. The files of the data set must stay: they are not read in
training, but packed data that no longer fit them are refused.
"""

import argparse
import os
import sys
from pathlib import Path

from tqdm import tqdm

from dataset import SegDataset, build_dataset
from dataset.prepare.check import check_dataset
from dataset.prepare.pack import pack, verify
from dataset.read.files import exists
from dataset.read.remote import Url, place
from tool.shared import cli
from tool.shared.data import files_of
from tool.shared.plugins import load
from util import UserError
from util.config.schema import Config

SPLITS = ("train", "val", "test")


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    config = None if args.config is None else load(args.config).config
    root = place(args.root if config is None else config.data.root)
    if args.out is None and isinstance(root, Url):
        raise UserError(f"{root} is not on this machine: say where the packed data go with --out DIR")
    folder = Path(args.out or root / "packed").expanduser()
    splits = args.split or [split for split in SPLITS if _has_list(root, split, config)]
    if not splits:
        raise FileNotFoundError(
            f"{root}: no list file there; write the lists first, for a known data set by "
            "`python -m tool.prepare <dataset> --root DIR`"
        )
    for split in splits:
        dataset = build_dataset(args.dataset, root, split=split) if config is None else files_of(config, split)
        if args.verify:
            verify(dataset, folder)
            print(f"{split}: all {len(dataset)} packed images are those of the files: {folder / split}", flush=True)
        else:
            _pack(dataset, folder, args.workers)
    return 0


def _pack(dataset: SegDataset, folder: Path, workers: int) -> None:
    check_dataset(dataset)
    with tqdm(total=len(dataset), desc=f"packing {dataset.split}", unit="image", file=sys.stderr) as bar:
        size = pack(dataset, folder, workers, bar.update)
    print(f"{dataset.split}: {len(dataset)} images, {size / 1e9:.2f} GB: {folder / dataset.split}", flush=True)


def _has_list(root: Path | Url, split: str, config: Config | None) -> bool:
    named = config is not None and getattr(config.data, f"{split}_list") is not None
    return named or exists(root / f"{split}.txt")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(
        prog="python -m tool.pack",
        description=__doc__,
        example="python -m tool.pack cityscapes --root /data/cityscapes",
    )
    parser.add_argument("dataset", nargs="?", help="a known data set, with its lists in --root")
    parser.add_argument("--root", metavar="DIR", help="folder of the data set")
    parser.add_argument("--config", metavar="FILE", help="an experiment, whose data are packed instead")
    parser.add_argument("--split", nargs="+", metavar="SPLIT", choices=SPLITS, help="default: all that have a list")
    parser.add_argument("--out", metavar="DIR", help="folder for the packed data (default: packed/ in the root)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--verify", action="store_true", help="write nothing; compare the packed data with the files")
    args = parser.parse_args(argv)
    if (args.config is None) == (args.dataset is None or args.root is None):
        parser.error("give a data set and --root DIR, or --config FILE")
    return args


if __name__ == "__main__":
    cli.command(main)
