"""Your own pictures and masks: pairs, classes and splits."""

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dataset.prepare.survey import Key, Survey
from dataset.read import DataError
from dataset.read.labelmap import IGNORE, MAX_CLASSES

PICTURES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".npy"}
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages", "leftImg8bit", "pictures", "photos")
MASK_FOLDERS = (
    "masks",
    "mask",
    "labels",
    "label",
    "annotations",
    "annotation",
    "SegmentationClass",
    "gt",
    "gtFine",
    "annot",
)
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# What tools add to a name: mask_7.png, 7_mask.png, 7-labelIds.png, 7_sat.jpg, 7_L.png.
_WORDS = (
    "mask|masks|label|labels|labelids|labeltrainids|gt|gtfine|seg|segmentation|annot|annotation|matte|l|image|img|"
    "leftimg8bit|sat|rgb"
)
_AFFIX = re.compile(rf"^(?:{_WORDS})[ _.-]+|[ _.-]+(?:{_WORDS})$")


BLACK, WHITE = (0, 0, 0), (255, 255, 255)
SMOOTHED = 8  # values between 0 and 255, from which on masks may be smoothed


@dataclass(frozen=True)
class Pairs:
    """Pictures with their masks, and what has found no partner.

    Paths are relative to the root. splits: the split of each pair that its folder or the table says, or None.
    """

    pairs: list[tuple[str, str]]
    splits: list[str | None]
    lone_images: list[str]
    lone_masks: list[str]

    @property
    def are_divided(self) -> bool:
        """Tell whether folders or table divide train from val."""
        return "train" in self.splits and "val" in self.splits


@dataclass(frozen=True)
class Classes:
    """Names of the classes, and the map from what is on disk.

    Names stand in the order of the training ids. label_map: None where the disk holds training ids already. note: a
    remark on how they were found.
    """

    names: tuple[str, ...]
    label_map: dict[Key, int] | None
    note: str = ""

    def values(self, seen: Survey) -> list[list[Key]]:
        """List each class's values on disk, without a map those seen."""
        label_map = self.label_map or {
            value: value for value in seen.pixels if isinstance(value, int) and value != IGNORE
        }
        return [[value for value, target in label_map.items() if target == i] for i in range(len(self.names))]


def pair_folders(root: Path, images: str | None = None, masks: str | None = None) -> Pairs:
    """Find pictures and masks below `root` and pair them by their names.

    Args:
        images: folder below `root`, the name of folders anywhere below it, or a glob pattern; None: the usual names.
        masks: the same for the masks; may be the folder of the pictures, where masks are told by their names.

    Raises:
        DataError: there are none, none of them fit, or a picture has several masks.
    """
    found_images = _select(root, images, IMAGE_FOLDERS, "pictures", "--images")
    found_masks = _select(root, masks, MASK_FOLDERS, "masks", "--masks")
    if images is not None and images == masks:
        found_masks = {path: key for path, key in found_masks.items() if _bare(key) != key.lower()}
        found_images = {path: key for path, key in found_images.items() if path not in found_masks}
        if not found_images or not found_masks:
            raise DataError(
                f"{root}: {len(found_images)} pictures and {len(found_masks)} masks in {images}; a mask beside "
                "pictures is told by its name, as in 7_mask.png; else give a --table with a line `picture,mask` each"
            )
    best: list[tuple[str, str]] = []
    for key in (str, _bare, bare_name):
        by_key: dict[str, list[str]] = {}
        for path, name in found_masks.items():
            by_key.setdefault(key(name), []).append(path)
        pairs = [(path, by_key[key(name)]) for path, name in found_images.items() if key(name) in by_key]
        several = next(((path, found) for path, found in pairs if len(found) > 1), None)
        if several and len(pairs) > len(best):
            path, found = several
            raise DataError(
                f"{root}: {path} has several masks: {', '.join(found[:3])}; say which are meant, for instance "
                "--masks 'labels/**/*_mask.png'"
            )
        if len(pairs) > len(best):
            best = [(path, found[0]) for path, found in pairs]
    if not best:
        raise DataError(
            f"{root}: {len(found_images)} pictures (as {next(iter(found_images))}) and {len(found_masks)} masks (as "
            f"{next(iter(found_masks))}), but no name fits another; give a --table with a line `picture,mask` each"
        )
    paired_images, paired_masks = {image for image, _ in best}, {mask for _, mask in best}
    return Pairs(
        best,
        # Of a folder elsewhere, what it lies in says nothing.
        [split_of(found_images[image] if PurePosixPath(image).is_absolute() else image) for image, _ in best],
        [path for path in found_images if path not in paired_images],
        [path for path in found_masks if path not in paired_masks],
    )


def pair_table(root: Path, table: Path) -> Pairs:
    """Read the pairs of a CSV file.

    Each line is `picture,mask` or `picture,mask,split`. A first line whose files are not there is taken for the names
    of the columns.

    Raises:
        DataError, FileNotFoundError: naming table and line.
    """
    pairs, splits, skipped = [], [], ""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{table}: not UTF-8 text; save the table as CSV in UTF-8") from None
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    for number, row in enumerate(csv.reader(io.StringIO(text), delimiter=delimiter), 1):
        fields = [field.strip() for field in row]
        if not any(fields):
            continue
        fields[:2] = [_existing(root, field) for field in fields[:2]]
        if number == 1 and not (root / fields[0]).is_file():
            skipped = f" (its first line is taken for names of columns, {fields[0]} is no file)"
            continue
        if len(fields) not in (2, 3) or (len(fields) == 3 and fields[2].lower() not in SPLITS):
            raise DataError(f"{table}:{number}: a line is `picture,mask` or `picture,mask,split` (train, val, test)")
        for path in fields[:2]:
            if not (root / path).is_file():
                raise FileNotFoundError(f"{table}:{number}: {root / path} is not there")
        pairs.append((fields[0], fields[1]))
        splits.append(SPLITS[fields[2].lower()] if len(fields) == 3 else split_of(fields[0]))
    if not pairs:
        raise DataError(f"{table}: no pairs{skipped}; a line is `picture,mask`, paths relative to {root}")
    twice = next((image for image, count in Counter(image for image, _ in pairs).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{table}: {twice} stands on two lines; remove one of them")
    return Pairs(pairs, splits, [], [])


def _existing(root: Path, path: str) -> str:
    """Return the path as it is there: backslashes may stand for slashes."""
    slashed = path.replace("\\", "/")
    return slashed if not (root / path).exists() and (root / slashed).exists() else path


def list_images(root: Path, images: str | None) -> dict[str, str]:
    """Map pictures that `pair_folders` would look at to bare names.

    Raises:
        DataError: there are none, or they are not below `root`, where masks that are drawn for them go.
    """
    found = _select(root, images, IMAGE_FOLDERS, "pictures", "--images")
    if PurePosixPath(next(iter(found))).is_absolute():
        raise DataError(f"--images {images}: not below {root}, which masks are drawn for; give it as --root")
    return found


def split_of(image: str) -> str | None:
    """Return the split that a picture's folders name."""
    return next((SPLITS[part.lower()] for part in PurePosixPath(image).parts[:-1] if part.lower() in SPLITS), None)


def divide(splits: Sequence[str | None], val: float, seed: int) -> list[str | None]:
    """Give each pair a split.

    The one it has where train and val both occur, else one drawn at random. Pairs that the folders give no split stay
    without one. Test pairs stay test pairs either way.

    Args:
        val: share of the pairs for validation, where it is drawn; at least one pair, and at most all but one.
        seed: of the drawing, which depends on it and on the number of pairs alone.

    Raises:
        DataError: fewer than two pairs to divide.
    """
    if "train" in splits and "val" in splits:
        return list(splits)
    free = [i for i, split in enumerate(splits) if split != "test"]
    if len(free) < 2:
        raise DataError(f"{len(free)} pictures with a mask: training and validation need one each")
    chosen = np.random.default_rng(seed).permutation(len(free))[: min(max(1, round(val * len(free))), len(free) - 1)]
    held_out = {free[i] for i in chosen}
    return ["test" if split == "test" else "val" if i in held_out else "train" for i, split in enumerate(splits)]


def choose_classes(values: Iterable[Key], names: Sequence[str] | None, ignored: Iterable[Key] = ()) -> Classes:
    """Decide which id or colour on disk is which class.

    255 is ignored, unless 0 and 255 are all there is: then 255 is the foreground.

    Args:
        values: all ids, or all colours (r, g, b), that the masks hold.
        names: of the classes; None: made up from the values.
        ignored: values that are no class.

    Raises:
        DataError: names that do not fit the values, ids and colours in one set, or too many classes.
    """
    found: set[Any] = set(values)  # of one kind, so that they can be sorted
    dropped: set[Any] = set(ignored)
    if len({isinstance(value, tuple) for value in found}) > 1:
        raise DataError("some masks hold ids and others colours; convert them to one kind")
    colours = any(isinstance(value, tuple) for value in found)
    for low, high in ((0, 255), (BLACK, WHITE)):
        if found - dropped == {low, high} and (names is None or len(names) == 2):
            note = "masks of 0 and 255: binary, 255 is the foreground; mIoU is the mean over both classes"
            label_map = {low: 0, high: 1, **dict.fromkeys(dropped, IGNORE)}
            return Classes(tuple(names or ("background", "foreground")), label_map, note)
    kept = sorted(found - dropped - ({IGNORE} if not colours else set()))
    if not kept:
        raise DataError("the masks hold no class: every value is ignored")
    if len(kept) == 1 and names is None:
        raise DataError(
            f"the masks hold one value alone, {kept[0]}, so nothing can be learnt; are these the right files "
            "(transparency is not read)? Name the classes with --classes if others are to come"
        )
    count = len(kept) if names is None else len(names)
    if count > MAX_CLASSES:
        raise DataError(
            f"{count} different values, and at most {MAX_CLASSES} classes are possible; are these masks, and were they "
            "saved without loss?"
        )
    note = "" if names else "names in this order: --classes A,B,...; what is no class: --ignore VALUE"
    ids = not colours and not dropped - {IGNORE}
    if ids and (kept == list(range(len(kept))) if names is None else kept[-1] < len(names)):
        return Classes(tuple(names or (f"class_{value}" for value in kept)), None, note)
    if names is not None and len(names) != len(kept):
        raise DataError(f"{len(names)} names of classes, but the masks hold {len(kept)} values: {_shown(kept)}")
    grey = colours and all(len(set(color)) == 1 for color in kept)
    shown = [color[0] if grey else "_".join(map(str, color)) for color in kept] if colours else kept
    label_map = {value: place for place, value in enumerate(kept)}
    names = tuple(names or (f"class_{value}" for value in shown))
    return Classes(names, label_map | dict.fromkeys(sorted(dropped), IGNORE), note)


def refuse_smoothed(pixels: Mapping[Key, int]) -> None:
    """Refuse masks of 0 and 255 that were smoothed.

    Smoothed edges hold a few values all over the range, on few pixels.

    Args:
        pixels: of each value on disk.

    Raises:
        DataError: they look as if they were.
    """
    between = {value: count for value, count in pixels.items() if value not in (0, IGNORE)}
    if isinstance(next(iter(pixels), ()), tuple) or not {0, IGNORE} <= pixels.keys() or len(between) < SMOOTHED:
        return
    share = sum(between.values()) / sum(pixels.values())
    values = sorted(value for value in between if isinstance(value, int))
    if share < 0.25 and values[-1] < IGNORE and values[-1] - values[0] > 128:
        raise DataError(
            f"the masks hold 0, 255, and {len(between)} values between on {share:.1%} of the pixels, as smoothed edges "
            "do; save them without smoothing, or name every value with --classes"
        )


def report(pairs: Pairs, classes: Classes, sums: Mapping[str, Survey], drawn: str) -> list[str]:
    """Return the lines that say what was found and what was decided.

    Args:
        sums: split -> what its files hold.
        drawn: where the splits come from.
    """
    lines = []
    undecided = sum(split is None for split in pairs.splits) if pairs.are_divided else 0
    for lone, what, lacking in ((pairs.lone_images, "picture", "mask"), (pairs.lone_masks, "mask", "picture")):
        if lone:
            many = "" if len(lone) == 1 else "s"
            lines.append(f"  left out: {len(lone)} {what}{many} without a {lacking} ({_shown(lone, 3)})")
    if undecided:
        lines.append(f"  left out: {undecided} pairs in no folder of train, val or test")
    whole: Counter = Counter()
    for each in sums.values():
        whole.update(each.pixels)
    of_value = {value: classes.names[i] for i, values in enumerate(classes.values(Survey(whole))) for value in values}
    for value, pixels in sorted(whole.items()):
        name = of_value.get(value, "ignored")
        lines.append(f"  {value!s:>15} on disk: {name}, {pixels / whole.total():.2%} of the pixels")
    lines += [f"  {classes.note}"] if classes.note else []
    for name, values in zip(classes.names, classes.values(sums["train"]), strict=True):
        absent = [split for split, each in sums.items() if not any(each.pixels.get(value) for value in values)]
        if absent:
            lines.append(f"  class {name!r} does not occur in {' and '.join(absent)}")
    lines.append(f"  {', '.join(f'{split} {each.count}' for split, each in sums.items())} pictures, {drawn}")
    mean, deviation = ([round(float(v), 2) for v in each] for each in (sums["train"].mean, sums["train"].deviation))
    return [*lines, f"  mean {mean}, deviation {deviation} (of 255)"]


def _select(root: Path, wanted: str | None, usual: tuple[str, ...], what: str, option: str) -> dict[str, str]:
    """Find the pictures that are meant: path -> name to pair by.

    They come in the order of their paths. Paths are relative to `root` where they are below it.
    """
    folder = root / wanted if wanted is not None else root  # an absolute path stays what it is
    if wanted is not None and any(sign in wanted for sign in "*?["):
        pattern = PurePosixPath(wanted)
        if pattern.is_absolute():
            raise DataError(f"{option} {wanted}: a pattern goes below {root}; name a folder, or link it there")
        paths = [path.relative_to(root) for path in root.glob(wanted)]
        parts = PurePosixPath(*(part for part in pattern.parts[:1] if "*" not in part)).parts
        chosen = {path: _without(path, parts) for path in paths}
    elif wanted is not None and folder.is_dir():
        chosen = {_below(path, root): path.relative_to(folder) for path in _walk(folder)}
    else:
        folders = usual if wanted is None else (wanted,)
        lower = {name.lower() for name in folders}
        paths = [path.relative_to(root) for path in _walk(root)]
        paths = [path for path in paths if lower & {part.lower() for part in path.parts[:-1]}]
        chosen = {path: _without(path, folders) for path in paths}
    chosen = {path: name for path, name in sorted(chosen.items()) if not any(part[0] == "." for part in name.parts)}
    found = {
        path.as_posix(): unicodedata.normalize("NFC", name.with_suffix("").as_posix())
        for path, name in chosen.items()
        if path.suffix.lower() in PICTURES
    }
    if not found:
        there = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())[:8]) or "no folders"
        looked = f"in {wanted}" if wanted else f"in folders called {', '.join(usual[:4])}, ..."
        if wanted is None and any(path.suffix.lower() in PICTURES for path in root.iterdir()):
            raise DataError(f"{root}: no {what} {looked}; for those in {root} itself give --images . --masks .")
        kinds = Counter(path.suffix.lower() or "no suffix" for path in chosen)
        if kinds:
            shown = ", ".join(f"{count} of {suffix}" for suffix, count in kinds.most_common(4))
            raise DataError(f"{root}: no {what} {looked}, but files that are not read: {shown}; convert them")
        raise DataError(f"{root}: no {what} {looked}; there are: {there}. Name the folder with {option}")
    return found


def _walk(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _below(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path.absolute()


def _without(path: Path, folders: Sequence[str]) -> Path:
    """A path without its first part of one of these names."""
    lower = {name.lower() for name in folders}
    at = next((i for i, part in enumerate(path.parts[:-1]) if part.lower() in lower), None)
    return path if at is None else Path(*path.parts[:at], *path.parts[at + 1 :])


def _bare(name: str) -> str:
    """A name without what tools add to it: a/mask_7, a/7_gtFine_labelIds and a/7.jpg (of 7.jpg.png) are a/7."""
    folder, slash, stem = name.lower().rpartition("/")
    stem = stem.removesuffix(next((end for end in PICTURES if stem.endswith(end)), ""))
    while (shorter := _AFFIX.sub("", stem)) not in ("", stem):
        stem = shorter
    return folder + slash + stem


def bare_name(name: str) -> str:
    """Return a file's name without folders and what tools add.

    a/mask_7 and b/7_gtFine_labelIds are both 7; the suffix has been taken off before.
    """
    return _bare(name).rpartition("/")[2]


def _shown(values: Sequence, count: int = 8) -> str:
    return ", ".join(str(value) for value in values[:count]) + (", ..." if len(values) > count else "")
