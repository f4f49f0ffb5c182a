"""Check that a data set lies on disk as its authors ship it, and write the list files that training reads.

    python -m tool.prepare cityscapes --root /data/cityscapes
    python -m tool.prepare camvid --root /data/camvid --out lists/camvid     # where the root is read-only
    python -m tool.prepare street --root data/street                         # draws the pictures, no download

The lists are `train.txt`, `val.txt` and `test.txt` in the root, which is where training looks for them. An
existing list with other contents is kept unless --force is given.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

from dataset import DATASETS, dataset_class
from dataset.prepare.layout import Layout, MissingFiles, collect
from util.record.files import replacing

Pairs = list[tuple[str, str | None]]


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 2 after a one-line message about what is missing."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["pack"]:  # its older name
        os.execv(sys.executable, [sys.executable, "-m", "tool.pack", *argv[1:]])
    arguments = _parse(argv)
    try:
        lines = prepare(
            arguments.dataset,
            Path(arguments.root).expanduser(),
            Path(arguments.out).expanduser() if arguments.out else None,
            arguments.force,
        )
    except (ValueError, OSError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def prepare(name: str, root: Path, out: Path | None = None, force: bool = False) -> list[str]:
    """Prepare data set `name` below `root` and return the summary's lines.

    Raises ValueError or OSError with one line that says what was expected, what is missing, where it is had.
    """
    if name == "street":
        return _prepare_street(root, out)
    kind = dataset_class(name)
    layout: Layout | None = getattr(kind, "layout", None)
    if layout is None:
        known = ", ".join(["street", *_with_layout()])
        raise ValueError(
            f"{name!r} has no official layout to prepare (those with one: {known}); write its "
            "list files yourself, one line `image label` a sample, see docs/datasets.md"
        )
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; {_how_to_get(name, layout)}")
    try:
        splits = {split: collect(root, split, files) for split, files in layout.splits.items()}
    except MissingFiles as error:
        raise ValueError(f"{error}; {_how_to_get(name, layout)}") from None
    target = out or root
    texts = {split: list_text(pairs) for split, pairs in splits.items() if pairs}
    present = {split: _keeps(target / f"{split}.txt", text, force) for split, text in texts.items()}
    for split, text in texts.items():
        if not present[split]:
            _write(target / f"{split}.txt", text)
    return _summary(name, root, layout, splits, present, out)


def list_text(pairs: Pairs) -> str:
    """The list file of (picture, label) paths; a path with white space is quoted."""
    return "".join(" ".join(_quoted(path) for path in pair if path is not None) + "\n" for pair in pairs)


def _quoted(path: str) -> str:
    plain = not any(letter.isspace() for letter in path) and path[0] not in "\"'"
    if plain:
        return path
    return f'"{path}"' if '"' not in path else f"'{path}'"


def _keeps(path: Path, text: str, force: bool) -> bool:
    """Whether `path` holds these lines already. Raises ValueError where it holds others, unless `force`."""
    if not path.is_file():
        return False
    old = path.read_text(encoding="utf-8", errors="replace")
    if sorted(old.split("\n")) == sorted(text.split("\n")):
        return True
    if force:
        return False
    raise ValueError(
        f"{path} exists with other lines ({_count(old)}, where the folders give {_count(text)}) "
        "and is kept; give --force to replace it, or --out DIR to write elsewhere"
    )


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror}); give --out DIR, a folder for the lists, "
            "and name them in the YAML as data.train_list and data.val_list"
        ) from None


def _count(text: str) -> int:
    return sum(bool(line.strip()) for line in text.split("\n"))


def _summary(
    name: str, root: Path, layout: Layout, splits: dict[str, Pairs], present: dict[str, bool], out: Path | None
) -> list[str]:
    lines = [f"{name} in {root} (licence: {layout.licence})"]
    for split, pairs in splits.items():
        expected = layout.splits[split].count
        if not pairs:
            lines.append(f"  {split:5} absent, which is fine for training")
            continue
        note = "" if len(pairs) == expected else f"; the complete data set has {expected}"
        unlabelled = "" if pairs[0][1] else " without labels"
        done = "unchanged" if present[split] else "written"
        lines.append(f"  {split:5} {len(pairs)} pictures{unlabelled}, {split}.txt {done}{note}")
    if out is not None:
        lines.append(
            f"The lists are in {out}; name them in the YAML: data.train_list: {out / 'train.txt'}, "
            f"data.val_list: {out / 'val.txt'}"
        )
    return lines


def _how_to_get(name: str, layout: Layout) -> str:
    wanted = ", ".join(files.images[0] for files in layout.splits.values() if files.required)
    return f"{name} is expected as {wanted} and is had from {layout.source}; licence: {layout.licence}"


def _prepare_street(root: Path, out: Path | None) -> list[str]:
    if out is not None:
        raise ValueError("street writes its lists beside its pictures; leave --out away")
    importlib.import_module("dataset.street").prepare(root)
    counts = [
        f"  {split:5} {_count((root / f'{split}.txt').read_text())} pictures"
        for split in ("train", "val", "test")
        if (root / f"{split}.txt").is_file()
    ]
    return [f"street in {root} (drawn here, free of rights)", *counts]


def _with_layout() -> list[str]:
    return [name for name in DATASETS if name != "street" and hasattr(dataset_class(name), "layout")]


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tool.prepare", description=__doc__.split("\n")[0])
    parser.add_argument("dataset", help=f"one of {', '.join(name for name in DATASETS if name != 'custom')}")
    parser.add_argument("--root", required=True, metavar="DIR", help="folder that the data set was unpacked in")
    parser.add_argument("--out", metavar="DIR", help="folder for the lists (default: the root)")
    parser.add_argument("--force", action="store_true", help="replace lists that have other contents")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
