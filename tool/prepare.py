"""Prepares a data set: fetches, checks, converts, lists.

    python -m tool.prepare cityscapes --root /data/cityscapes
    python -m tool.prepare voc_aug --root /data/voc --download
    python -m tool.prepare rugd --root /data/rugd --measure                  # mean and deviation of the pictures
    python -m tool.prepare camvid --root /data/camvid --out lists/camvid     # where the root is read-only
    python -m tool.prepare street --root data/street                         # draws the pictures, no download
    python -m tool.prepare custom --root /data/mine --name mine              # your own pictures and masks

The lists go to the root, where training looks for them. Labels that have to be converted go to ROOT/prepared; what
is there already is only read. An existing list with other contents is kept unless --force is given.
"""

import argparse
import errno
import importlib
import json
import math
import os
import re
import shlex
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import yaml
from tqdm import tqdm

from dataset import DATASETS, dataset_class
from dataset.prepare.convert import WORTH_A_PROCESS, convert
from dataset.prepare.custom import (
    Classes,
    Pairs,
    choose_classes,
    divide,
    list_images,
    pair_folders,
    pair_table,
    refuse_smoothed,
    report,
    split_of,
)
from dataset.prepare.download import fetch, is_unpacked, unpack
from dataset.prepare.exports import draw, read_export
from dataset.prepare.layout import Drawn, Files, Found, Layout, MissingFiles, collect, either
from dataset.prepare.survey import Key, Survey, measure, survey
from tool.shared.cli import Parser, command
from util import UserError
from util.record.files import replacing
from util.record.log import printable

CONFIG = Path(__file__).resolve().parents[1] / "config"

Lines = list[tuple[str, str | None]]


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    root = Path(arguments.root).expanduser()
    out = Path(arguments.out).expanduser() if arguments.out else None
    if arguments.dataset == "custom":
        lines = prepare_custom(root, out or root, arguments)
    elif arguments.dataset == "street":
        lines = _prepare_street(root, out)
    else:
        lines = prepare(arguments.dataset, root, out, arguments)
    if arguments.measure and arguments.dataset != "custom":  # whose pictures are read and measured in any case
        lines += _measured(arguments.dataset, root, out, arguments.workers)
    print(printable("\n".join(lines)))
    return 0


def prepare(name: str, root: Path, out: Path | None, options: argparse.Namespace) -> list[str]:
    """Prepare data set `name`; return the lines of the summary.

    root: the folder of the data set.

    Raises:
        UserError, DataError, OSError: one line that says what was expected, what is missing, where it is had.
    """
    kind = dataset_class(name)
    layout: Layout = kind.layout
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
        _describe_split(
            split, splits[split], found[split], layout.splits[split].count, lists[split].name, present.get(split)
        )
        for split in layout.splits
    ]
    return [head, *lines, *_where({split: lists[split] for split in texts} if out else {})]


def _measured(name: str, root: Path, out: Path | None, workers: int) -> list[str]:
    """Measure mean and deviation of the training pictures; the lines say them as keys of an experiment."""
    dataset = dataset_class(name)(root, out / "train.txt" if out else None)
    workers = min(workers, max(1, len(dataset) // WORTH_A_PROCESS))
    with tqdm(desc="measure", total=len(dataset), disable=None) as bar:
        mean, deviation = measure((image for image, _ in dataset.samples), workers, bar.update)
    shown = (json.dumps(_rounded(each), separators=(",", ":")) for each in (mean, deviation))
    keys = " ".join(f"data.{key}={values}" for key, values in zip(("mean", "std"), shown, strict=True))
    return [f"Measured on the {len(dataset)} training pictures: {keys}"]


def list_text(pairs: Lines) -> str:
    """Return the list file of (picture, label) paths, quoted if needed."""
    return "".join(" ".join(_quoted(path) for path in pair if path is not None) + "\n" for pair in pairs)


def _quoted(path: str) -> str:
    plain = not any(letter.isspace() for letter in path) and path[0] not in "\"'"
    if plain:
        return path
    return f'"{path}"' if '"' not in path else f"'{path}'"


def _download(name: str, root: Path, layout: Layout, options: argparse.Namespace) -> None:
    if not layout.downloads:
        raise UserError(f"{name} cannot be fetched by a program: {_how_to_get(name, layout)}")
    if not options.force and _is_complete(root, layout):
        return
    print(f"{name} from {layout.source}; licence: {layout.licence}", file=sys.stderr)
    for archive in layout.downloads:
        if is_unpacked(archive, root) and not options.force:
            print(f"{archive.name} was unpacked before; --force fetches and unpacks it again", file=sys.stderr)
        else:
            unpack(fetch(archive, root), archive, root)


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
                own = dataset_class(name).default_list(root, split)
                kept = f"; {own} is there, and training reads it as it is" if own.is_file() else ""
                deeper = _deeper(root, split, files)
                hint = _how_to_get(name, layout) if deeper is None else f"but it lies in {deeper}: give --root {deeper}"
                raise UserError(f"{error}; {hint}{kept}") from None
            found[split] = Found([], None)
    if not any(each.images for each in found.values()):
        raise UserError(f"{root}: nothing of {name} is there; {_how_to_get(name, layout)}")
    return found


def _deeper(root: Path, split: str, files: Files) -> Path | None:
    """The folder in the root that pictures of a split lie in, as unpacking may have made one."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        with suppress(MissingFiles):
            if collect(folder, split, replace(files, labels=(), required=False), partial=True).images:
                return folder
    return None


def _pairs(name: str, root: Path, out: Path | None, split: str, found: Found, options: argparse.Namespace) -> Lines:
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
    """Whether `path` holds these lines already. Raises UserError where it holds others, unless `force`."""
    if not path.is_file():
        return False
    old = path.read_text(encoding="utf-8", errors="replace")
    if sorted(old.split("\n")) == sorted(text.split("\n")):
        return True
    if force:
        return False
    raise UserError(
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


def _describe_split(split: str, pairs: Lines, found: Found, expected: int, list_name: str, present: bool | None) -> str:
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
        raise UserError("street writes its lists beside its pictures; leave --out away")
    importlib.import_module("dataset.street").prepare(root)
    counts = [
        f"  {split:5} {_count((root / f'{split}.txt').read_text())} pictures"
        for split in ("train", "val", "test")
        if (root / f"{split}.txt").is_file()
    ]
    return [f"street in {root} (drawn here, free of rights)", *counts]


def prepare_custom(root: Path, out: Path, options: argparse.Namespace) -> list[str]:
    """Prepare the user's own pictures; return the report.

    They are paired, counted and divided; lists and an experiment are written.

    Raises:
        UserError, DataError, OSError: one message that names the files.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; it holds your pictures and masks")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", options.name) or options.name in DATASETS:
        raise UserError(f"--name {options.name}: a new name of letters, digits and dashes, which names the experiments")
    if not 0 < options.val < 1:
        raise UserError(f"--val {options.val}: a share between 0 and 1")
    if options.seed < 0 or not 1 <= options.channels <= 512:
        raise UserError(f"--seed {options.seed} --channels {options.channels}: from 0 on, and 1 to 512")
    networks = sorted(path.stem for path in (CONFIG / "base/network").glob("*.yaml"))
    if options.network not in networks:
        raise UserError(f"--network {options.network}: none of {', '.join(networks)}")
    pairs, names = _own_pairs(root, out, options)
    splits = divide(pairs.splits, options.val, options.seed)
    chosen = [(image, mask, split) for (image, mask), split in zip(pairs.pairs, splits, strict=True) if split]

    limits = None if options.range is None else _limits(options.range)
    # Every picture and mask is read once; then it is known what the values on disk are.
    with tqdm(desc="read", total=len(chosen), disable=None) as bar:
        found = survey(
            root, chosen, min(options.workers, max(1, len(chosen) // 32)), bar.update, options.channels, limits
        )
    sums = {split: found[split] for split in ("train", "val", "test") if split in found}
    pixels: Counter[Key] = Counter()
    for each in sums.values():
        pixels.update(each.pixels)
    if names is None:
        refuse_smoothed(pixels)
    classes = choose_classes(pixels, names, [_value(text) for text in options.ignore])

    lists = {split: out / f"{split}.txt" for split in sums}
    texts = {s: list_text([(image, mask) for image, mask, split in chosen if split == s]) for s in lists}
    present = {split: _keeps(lists[split], text, options.force) for split, text in texts.items()}
    config = Path(options.config or CONFIG / options.name) / f"{options.name}_{options.network}.yaml"
    text = own_experiment(root, out, config, classes, sums, options)
    kept = _keeps(config, text, options.force)
    for path, contents, there in [*((lists[s], texts[s], present[s]) for s in lists), (config, text, kept)]:
        if not there:
            _write(path, contents)
    head = f"{options.name}: {len(pairs.pairs)} pictures with masks in {root}"
    drawn = "as the folders say" if pairs.are_divided else f"drawn with --seed {options.seed}"
    train = _command(config, options)
    test = (
        "Train and score"
        if train.startswith("sh ")
        else (f"Score afterwards: python -m tool.test --config {shlex.quote(str(config))}\nTrain")
    )
    end = [f"Experiment: {config}", f"{test}, with further keys as section.key=value:", f"  {train}"]
    return [head, *report(pairs, classes, sums, drawn), *end]


def _own_pairs(root: Path, out: Path, options: argparse.Namespace) -> tuple[Pairs, list[str] | None]:
    """Pictures with their masks, drawn first where an annotation tool has written outlines, and the classes' names."""
    names = _names(options.classes)
    if options.table:
        return pair_table(root, Path(options.table)), names
    if not options.annotations:
        return pair_folders(root, options.images, options.masks), names
    path = Path(options.annotations) if Path(options.annotations).exists() else root / options.annotations
    export = read_export(path)
    images = list_images(root, options.images)
    drawn = Drawn(lambda *_: str(path.resolve()), draw, lambda *_: export.tasks(root, images))
    folder = out / "prepared" / options.name
    with tqdm(desc="masks", total=len(images), disable=None) as bar:
        made = convert(root, Found(list(images), drawn), folder, options.workers, again=True, progress=bar.update)
    if not made:
        first = next(export.items())
        raise UserError(
            f"{path}: none of its pictures (as {first.image}) is among those of {root} (as {next(iter(images))})"
        )
    if export.skipped:
        print(
            f"{export.skipped} annotations are no areas (points, lines, boxes of detection): not drawn", file=sys.stderr
        )
    lone = sorted(set(images) - {image for image, _ in made})
    masks = [(path.relative_to(root) if path.is_relative_to(root) else path.resolve()).as_posix() for _, path in made]
    pairs = list(zip((image for image, _ in made), masks, strict=True))
    return Pairs(pairs, [split_of(image) for image, _ in made], lone, []), names or list(export.classes)


def _names(text: str | None) -> list[str] | None:
    """The names of classes, as a comma-separated list or a file with one a line."""
    if text is None:
        return None
    try:  # names by the hundred are too long for the name of a file
        lines = Path(text).read_text(encoding="utf-8-sig").splitlines() if os.path.isfile(text) else text.split(",")
    except UnicodeDecodeError:
        raise UserError(f"--classes {text}: not UTF-8 text; a line is the name of a class") from None
    names = [line.strip() for line in lines if line.strip()]
    wrong = next((name for i, name in enumerate(names) if name in names[:i] or not name.isprintable()), None)
    if wrong is not None:
        raise UserError(f"--classes: {wrong!r} stands there twice, or holds a control character")
    return names


def _limits(texts: list[str]) -> tuple[float, float] | tuple[str, str]:
    """Two numbers, or two percentages."""
    low, high = texts
    percent = low.endswith("%") and high.endswith("%")
    try:
        numbers = [float(text.removesuffix("%") if percent else text) for text in texts]
        if not (numbers[0] < numbers[1] and all(map(math.isfinite, numbers))):
            raise ValueError("no range")
        if percent and not (numbers[0] >= 0 and numbers[1] <= 100):
            raise ValueError("no percentages")
    except ValueError:
        raise UserError(
            f"--range {low} {high}: two numbers, the lower one first, such as 0 2400, or percentages such as 2% 98%"
        ) from None
    return (low, high) if percent else (numbers[0], numbers[1])


def _value(text: str) -> int | tuple[int, int, int]:
    """An id, or a colour "r,g,b"."""
    try:
        numbers = [int(number) for number in text.split(",")]
        return numbers[0] if len(numbers) == 1 else tuple(numbers)
    except ValueError:
        raise UserError(f"--ignore {text}: an id such as 0, or a colour such as 0,0,0") from None


def own_experiment(
    root: Path, out: Path, config: Path, classes: Classes, sums: dict[str, Survey], options: argparse.Namespace
) -> str:
    """Return the YAML of an experiment on the user's data."""
    train = sums["train"]
    near = config.resolve().is_relative_to(CONFIG)
    base = Path(os.path.relpath(CONFIG / "base", config.resolve().parent)) if near else CONFIG / "base"
    crop = [max(32, min(512, side // 32 * 32)) for side in (train.height, train.width)]
    data: dict = {"name": "custom", "root": str(root.resolve())}
    if options.channels != 3:
        data |= {"channels": options.channels, "mean": _rounded(train.mean), "std": _rounded(train.deviation)}
    if options.range is not None:
        data["range"] = list(_limits(options.range))
    if out != root:
        data |= {f"{split}_list": str((out / f"{split}.txt").resolve()) for split in sums}
    data["classes"] = list(classes.names)
    if classes.label_map is not None:
        keys = {key: key if isinstance(key, int) else ",".join(map(str, key)) for key in classes.label_map}
        data["label_map"] = {keys[key]: value for key, value in classes.label_map.items()}
    batch = 2 ** int(math.log2(min(8, train.count)))
    settings = {"data": data, "augment": {"crop": crop}, "train": {"batch_size": batch, "epochs": 100}}
    weights = train.class_weights(classes.values(train))
    count = sum(each.count for each in sums.values())
    return "".join(
        [
            f"# {options.name}: {count} pictures, {len(classes.names)} classes.\n#\n",
            f"# Command:   {_command(config, options)}\n#\n",
            "# Measured on the training pictures. The normalisation helps where a network starts anew, the\n"
            "# weights of the classes (median frequency) where rare classes are missed.\n",
            f"#   data: {{mean: {_rounded(train.mean)}, std: {_rounded(train.deviation)}}}\n",
            f"#   loss: {{class_weights: {_rounded(weights, 4)}}}\n",
            f"base: [{base}/network/{options.network}.yaml, {base}/recipe/scratch.yaml]\n",
            yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True),
        ]
    )


def _rounded(numbers, digits: int = 2) -> list[float]:
    return [round(float(number), digits) for number in numbers]


def _command(config: Path, options: argparse.Namespace) -> str:
    if config.resolve() == CONFIG / options.name / config.name:
        return f"sh tool/train.sh {options.name} {options.network}"
    return f"python -m tool.train --config {shlex.quote(str(config))}"


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m tool.prepare",
        description=__doc__,
        example="python -m tool.prepare voc --root /data/voc --download",
    )
    parser.add_argument("dataset", help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("--root", required=True, metavar="DIR", help="folder that the data set was unpacked in")
    parser.add_argument("--download", action="store_true", help="fetch the data set first, where its terms allow it")
    parser.add_argument("--out", metavar="DIR", help="folder for lists and converted labels (default: the root)")
    parser.add_argument("--force", action="store_true", help="replace lists that differ, convert and unpack again")
    parser.add_argument(
        "--measure", action="store_true", help="measure mean and deviation of the training pictures (custom: always)"
    )
    parser.add_argument("--partial", action="store_true", help="leave out what is missing instead of stopping")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes that convert labels"
    )
    own = parser.add_argument_group("custom", "your own pictures: two folders, a table, or the export of a tool")
    own.add_argument("--name", default="mine", help="of the data, for its experiments (default: mine)")
    own.add_argument("--images", metavar="DIR", help="pictures: a folder, or a pattern (default: images and the like)")
    own.add_argument("--masks", metavar="DIR", help="masks: a folder, or a pattern (default: masks, labels, ...)")
    own.add_argument("--table", metavar="CSV", help="instead of folders: a file of lines `picture,mask[,split]`")
    own.add_argument(
        "--annotations",
        metavar="PATH",
        help="instead of masks: COCO or Label Studio JSON, CVAT XML, LabelMe or YOLO folder",
    )
    own.add_argument("--classes", metavar="A,B,...", help="names in the order of the ids, or a file with one a line")
    own.add_argument("--ignore", action="append", default=[], metavar="VALUE", help="an id, or r,g,b, that is no class")
    own.add_argument("--channels", type=int, default=3, metavar="N", help="bands of the pictures (3: RGB)")
    own.add_argument("--range", nargs=2, metavar=("LOW", "HIGH"), help="values that become 0 and 255, see data.range")
    own.add_argument("--val", type=float, default=0.2, metavar="SHARE", help="of the pictures, for validation (0.2)")
    own.add_argument("--seed", type=int, default=0, help="of the drawing of the validation pictures (0)")
    own.add_argument("--network", default="fcn18", help="of the experiment: a name of config/base/network (fcn18)")
    own.add_argument("--config", metavar="DIR", help="folder of the experiment (default: config/NAME)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    command(main)
