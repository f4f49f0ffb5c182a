"""Fetch, check and convert a data set, and write the list files that training reads.

    python -m tool.prepare cityscapes --root /data/cityscapes
    python -m tool.prepare voc_aug --root /data/voc --download
    python -m tool.prepare camvid --root /data/camvid --out lists/camvid     # where the root is read-only
    python -m tool.prepare street --root data/street                         # draws the pictures, no download

The lists go to the root, where training looks for them. Labels that have to be converted go to ROOT/prepared; what
is there already is only read. An existing list with other contents is kept unless --force is given.
"""

import argparse
import errno
import importlib
import os
import sys
from pathlib import Path

from tqdm import tqdm

from dataset import DATASETS, dataset_class
from dataset.prepare.convert import convert
from dataset.prepare.download import fetch, unpack
from dataset.prepare.layout import Drawn, Found, Layout, MissingFiles, collect, either
from tool.shared.cli import command
from util.record.files import replacing

Pairs = list[tuple[str, str | None]]


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    root = Path(arguments.root).expanduser()
    out = Path(arguments.out).expanduser() if arguments.out else None
    if arguments.dataset == "street":
        lines = _prepare_street(root, out)
    else:
        lines = prepare(arguments.dataset, root, out, arguments)
    print("\n".join(lines))
    return 0


def prepare(name: str, root: Path, out: Path | None, options: argparse.Namespace) -> list[str]:
    """Prepare data set `name` below `root` and return the lines of the summary.

    Raises:
        ValueError, OSError: one line that says what was expected, what is missing, where it is had.
    """
    kind = dataset_class(name)
    layout: Layout | None = getattr(kind, "layout", None)
    if layout is None:
        known = ", ".join(["street", *_with_layout()])
        raise ValueError(
            f"{name!r} has no official layout to prepare (those with one: {known}); write its "
            "list files yourself, one line `image label` a sample, see docs/datasets.md"
        )
    # What is there, and what can be fetched.
    if options.download:
        _download(name, root, layout, options)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; {_how_to_get(name, layout)}")
    found = _collect_all(name, root, layout, options)

    # Labels that are made of other files, and all lists; a list that says something else stops it before any is
    # written.
    splits = {split: _pairs(name, root, out, split, each, options) for split, each in found.items()}
    lists = {split: out / f"{split}.txt" if out else kind.default_list(root, split) for split in splits}
    texts = {split: list_text(pairs) for split, pairs in splits.items() if pairs}
    present = {split: _keeps(lists[split], text, options.force) for split, text in texts.items()}
    for split, text in texts.items():
        if not present[split]:
            _write(lists[split], text)
    head = f"{name} in {root} (licence: {layout.licence})"
    lines = [
        _told(split, splits[split], found[split], layout.splits[split].count, lists[split].name, present.get(split))
        for split in layout.splits
    ]
    return [head, *lines, *_where(lists if out else {})]


def list_text(pairs: Pairs) -> str:
    """The list file of (picture, label) paths; a path with white space is quoted."""
    return "".join(" ".join(_quoted(path) for path in pair if path is not None) + "\n" for pair in pairs)


def _quoted(path: str) -> str:
    plain = not any(letter.isspace() for letter in path) and path[0] not in "\"'"
    if plain:
        return path
    return f'"{path}"' if '"' not in path else f"'{path}'"


def _download(name: str, root: Path, layout: Layout, options: argparse.Namespace) -> None:
    if not layout.downloads:
        raise ValueError(f"{name} cannot be fetched by a program: {_how_to_get(name, layout)}")
    if not options.force and _is_complete(root, layout):
        return
    print(f"{name} from {layout.source}; licence: {layout.licence}", file=sys.stderr)
    for archive in layout.downloads:
        path = root / "downloads" / archive.name
        if not (path.with_name(f".{path.name}.unpacked").is_file() and not path.is_file()):
            path = fetch(archive, root / "downloads")
            unpack(path, archive, root, again=options.force)


def _is_complete(root: Path, layout: Layout) -> bool:
    try:
        return all(
            len(collect(root, split, files).images) >= files.count
            for split, files in layout.splits.items()
            if files.required
        )
    except MissingFiles:
        return False


def _collect_all(name: str, root: Path, layout: Layout, options: argparse.Namespace) -> dict[str, Found]:
    found: dict[str, Found] = {}
    for split, files in layout.splits.items():
        try:
            found[split] = collect(root, split, files, options.partial)
        except MissingFiles as error:
            if not options.partial:
                raise ValueError(f"{error}; {_how_to_get(name, layout)}") from None
            found[split] = Found([], None)
    if not any(each.images for each in found.values()):
        raise ValueError(f"{root}: nothing of {name} is there; {_how_to_get(name, layout)}")
    return found


def _pairs(name: str, root: Path, out: Path | None, split: str, found: Found, options: argparse.Namespace) -> Pairs:
    """The (picture, label) paths of a split for its list, its labels made first where they are not there."""
    if not isinstance(found.labels, Drawn):
        labels = [None] * len(found.images) if found.labels is None else found.labels
        return list(zip(found.images, labels, strict=True))
    folder = (out / "labels") if out else root / "prepared" / name
    with tqdm(desc=f"labels of {split}", total=len(found.images), disable=None) as bar:
        try:
            made = convert(root, found, folder, options.workers, options.force, bar.update)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS):
                raise
            raise OSError(f"{folder} cannot be written ({error.strerror}); give --out DIR, a folder for it") from None
    inside = folder.is_relative_to(root)
    return [(image, (path.relative_to(root) if inside else path.resolve()).as_posix()) for image, path in made]


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


def _told(split: str, pairs: Pairs, found: Found, expected: int, list_name: str, present: bool | None) -> str:
    """The line of the summary about one split."""
    if not pairs:
        return f"  {split:5} absent" + (", which is fine for training" if split == "test" else "")
    there = len(found.images) + found.left_out
    notes = [
        f"{found.left_out} pictures without a label are left out" if found.left_out else "",
        f"{len(found.images) - len(pairs)} pictures are left out by the rules of the data set"
        if len(pairs) < len(found.images)
        else "",
        f"the complete data set has {expected}" if there != expected else "",
    ]
    done = "unchanged" if present else "written"
    unlabelled = "" if pairs[0][1] else " without labels"
    first = f"  {split:5} {len(pairs)} pictures{unlabelled}, {list_name} {done}"
    return "; ".join([first, *filter(None, notes)])


def _where(lists: dict[str, Path]) -> list[str]:
    if not lists:
        return []
    names = ", ".join(f"data.{split}_list: {path}" for split, path in lists.items() if split != "test")
    return [f"The lists are in {next(iter(lists.values())).parent}; name them in the YAML: {names}"]


def _how_to_get(name: str, layout: Layout) -> str:
    wanted = ", ".join(either(files.images) for files in layout.splits.values() if files.required)
    got = "--download fetches it" if layout.downloads else layout.manual
    source = f" from {layout.source}" + (f": {got}" if got else "")
    return f"{name} is expected as {wanted} and is had{source}; licence: {layout.licence}"


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


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tool.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help=f"one of {', '.join(name for name in DATASETS if name != 'custom')}")
    parser.add_argument("--root", required=True, metavar="DIR", help="folder that the data set was unpacked in")
    parser.add_argument("--download", action="store_true", help="fetch the data set first, where its terms allow it")
    parser.add_argument("--out", metavar="DIR", help="folder for lists and converted labels (default: the root)")
    parser.add_argument("--force", action="store_true", help="replace lists that differ, convert and unpack again")
    parser.add_argument("--partial", action="store_true", help="leave out what is missing instead of stopping")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes that convert labels"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    command(main)
