"""Maps values of label files to training ids."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np

from dataset.read import DataError
from dataset.read.image import Stored

IGNORE = 255
MAX_CLASSES = 255

Colour = tuple[int, int, int]
Key = int | Colour


class LabelMap:
    """Maps ids or RGB colours to training ids.

    Ids 0..65535 to 0..C-1 and 255 (ignored). An id or colour that is not a key is an error when a label holds it, only
    255 on disk stays ignored unless it is mapped.

    Args:
        mapping: keys are ids, or colours given as (r, g, b) or as the text "r,g,b"; values are training ids or 255.
            None: the identity over 0..num_classes-1.
        num_classes: 1 to 255.
        owner: the data set the map belongs to, for errors.
        class_colors: RGB of each class, for labels drawn in these; a colour of the mapping, or of two classes, is not
            taken from here.

    Raises:
        DataError: names the owner and the key or value that is out of range.
    """

    def __init__(
        self, mapping: Mapping | None, num_classes: int, owner: str, class_colors: Sequence[Colour] | None = None
    ):
        assert 1 <= num_classes <= MAX_CLASSES
        self.owner = owner
        mapping = {i: i for i in range(num_classes)} if mapping is None else mapping
        self.ids: dict[int, int] = {}
        self.colors: dict[Colour, int] = {}
        for key, value in mapping.items():
            value = self._check_value(key, value, num_classes)
            if isinstance(key, (str, tuple, list)):
                self.colors[self._check_color(key)] = value
            else:
                self.ids[self._check_id(key)] = value
        self.given: dict[Key, int] = {}
        self.given.update(self.ids.items())
        self.given.update((color, value) for color, value in self.colors.items())
        for color, count in Counter(class_colors or ()).items():
            if count == 1 and class_colors is not None:
                self.colors.setdefault(color, class_colors.index(color))
        self.has_ids = bool(self.ids)
        self.names_ignored = IGNORE in self.ids  # whether the mapping itself says what 255 is
        self.ids.setdefault(IGNORE, IGNORE)
        self.table = np.full(65536, IGNORE, np.uint8)
        self.unknown = np.ones(65536, np.uint8)
        for key, value in self.ids.items():
            self.table[key], self.unknown[key] = value, 0
        self._color_table: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_color_table": None}

    def raw_values(self, stored: Stored, path: str = "label") -> np.ndarray:
        """Return the ids or colours that a label means.

        They are read by its palette where that says more. Colours of the map are looked up in the palette. A palette of
        greys is read as these. The indices are ids where no colour of the palette says otherwise.

        Raises:
            DataError: the palette holds colours of the map at other ids, and others that the map does not know, or has
                no colour for an index.
        """
        values, palette = stored
        if palette is None:
            return values
        used = np.flatnonzero(np.bincount(values.ravel(), minlength=1))
        entries = {int(i): tuple(palette[i].tolist()) for i in used if i < len(palette)}
        known = {i: self.colors[color] for i, color in entries.items() if color in self.colors}
        if self.colors and (not self.has_ids or len(known) == len(used)):
            if len(entries) < len(used):
                raise DataError(
                    f"{path}: its palette has {len(palette)} colours, and none for the index {used[-1]}; save the "
                    "label anew, or give label_map by ids"
                )
            return palette[values]
        if stored.meant is not values:
            return stored.meant
        if any(self.ids.get(i) != value for i, value in known.items()):
            others = [str(color) for i, color in entries.items() if i not in known]
            raise DataError(
                f"{path}: its palette gives classes of {self.owner} by their colours, but the label map does not know "
                f"the colours {', '.join(others[:8])}; list them in label_map (or 255 to ignore them)"
            )
        return values

    def apply(self, raw: np.ndarray, path: str = "label") -> np.ndarray:
        """Map a label to training ids uint8 (H, W).

        raw: ids uint8 or uint16 (H, W), or colours uint8 (H, W, 3).

        Raises:
            DataError: names `path`, the values that are not in the map, and the map.
        """
        self._check_kind(raw, path)
        if raw.ndim == 3:
            found = self._look_up(raw)
            if not found.all():
                raise DataError(self.message(path, self.unknown_values(raw)))
            return (found - 1).astype(np.uint8)
        if raw.dtype == np.uint8:
            unknown = cv2.LUT(raw, self.unknown[:256])
            label = cv2.LUT(raw, self.table[:256])
        else:
            unknown, label = self.unknown[raw], self.table[raw]
        if cv2.countNonZero(unknown):
            raise DataError(self.message(path, self.unknown_values(raw)))
        return label

    def unknown_values(self, raw: np.ndarray, path: str = "label") -> dict[Key, int]:
        """Count the pixels of each value that the map lacks.

        Raises:
            DataError: a label of ids where the map has colours only, or the other way round.
        """
        self._check_kind(raw, path)
        if raw.ndim == 3:
            keys, counts = np.unique(_packed(raw)[self._look_up(raw) == 0], return_counts=True)
            colors = [(k >> 16, k >> 8 & 255, k & 255) for k in keys.tolist()]
            return dict(zip(colors, counts.tolist(), strict=True))
        keys, counts = np.unique(raw[self.unknown[raw] > 0], return_counts=True)
        return dict(zip(keys.tolist(), counts.tolist(), strict=True))

    def to_paste(self, extra: Iterable[Key]) -> str:
        """Write the map as a key of an experiment.

        `extra` values are added, ignored.
        """
        if self.given == {i: i for i in range(len(self.given))} and len(self.given) > 12:
            shown = ["rest: identity"]
        else:
            shown = [f"{_yaml(key)}: {value}" for key, value in self.given.items()]
        return "label_map: {" + ", ".join([*shown, *(f"{_yaml(key)}: {IGNORE}" for key in extra)]) + "}"

    def invert(self, classes: Sequence[str]) -> np.ndarray:
        """Return what stands on disk for each training id.

        Ids (256,), or colours (256, 3) where the map has no ids.

        Training id 255 becomes the lowest of the values that the map ignores.

        Raises:
            DataError: names a class with several values on disk, or none.
        """
        source: dict[Key, int] = {k: v for k, v in self.given.items() if isinstance(k, int) or not self.has_ids}
        table = np.zeros(256 if self.has_ids else (256, 3), np.uint16)
        for index, name in enumerate(classes):
            keys = [key for key, value in source.items() if value == index]
            if len(keys) != 1:
                what = (
                    f"the values {', '.join(map(str, keys[:8]))}{', ...' if keys[8:] else ''}" if keys else "no value"
                )
                raise DataError(
                    f"the label map of {self.owner} gives class {name!r} {what} on disk, so predictions cannot be "
                    "written as labels (test.submission); map one value to each class"
                )
            table[index] = keys[0]
        ignored = [key for key, value in source.items() if value == IGNORE]
        table[IGNORE] = np.array(ignored).min(axis=0) if ignored else IGNORE
        return table.astype(np.uint8) if table.max() < 256 else table

    def __str__(self) -> str:
        parts = [_describe(*run) for run in _runs(sorted(self.ids.items()))]
        if self.colors:
            shown = [f"rgb {key} -> {_target(value)}" for key, value in list(self.colors.items())[:3]]
            rest = len(self.colors) - len(shown)
            parts += shown + ([f"and {rest} more colours"] if rest > 0 else [])
        return ", ".join(parts)

    def _check_kind(self, raw: np.ndarray, path: str) -> None:
        if raw.ndim == 3 and not self.colors:
            raise DataError(
                f"{path}: a label of three channels, where one channel of ids is wanted; {self._advice(raw)}"
            )
        if raw.ndim == 2 and not self.has_ids:
            raise DataError(
                f"{path}: a label of ids, but {self.owner} maps colours only "
                f"({self}); use the colour label, or add the ids to label_map"
            )

    def _look_up(self, raw: np.ndarray) -> np.ndarray:
        """Give the training ids of colours, each one higher; 0 where the colour is unknown."""
        if self._color_table is None:
            # Zero means unknown, so the 32 MiB stay untouched (and unallocated) but for the known colours.
            # It is kept once it is filled: the threads of the check look up in it meanwhile.
            table = np.zeros(1 << 24, np.uint16)
            for (r, g, b), value in self.colors.items():
                table[r << 16 | g << 8 | b] = value + 1
            self._color_table = table
        return self._color_table[_packed(raw)]

    def _advice(self, raw: np.ndarray) -> str:
        if (raw == raw[:, :, :1]).all():
            return "its three channels are equal: save one of them"
        return (
            f"{self.owner} has no colours to read it by: convert it to class ids, or give label_map with "
            'the keys "r,g,b"'
        )

    def message(self, path: str, unknown: Iterable[Key]) -> str:
        """Say which values the map lacks, and what to do."""
        values = list(unknown)
        shown = ", ".join(str(value) for value in values[:8]) + (", ..." if len(values) > 8 else "")
        what = f"values {shown} are" if len(values) > 1 else f"value {shown} is"
        return (
            f"{path}: {what} not in the label map of {self.owner} ({self}); correct the label, or list "
            "the value in label_map (value on disk: class id, or 255 to ignore it)"
        )

    def _check_value(self, key, value, num_classes: int) -> int:
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, np.integer))
            or not (0 <= value < num_classes or value == IGNORE)
        ):
            raise DataError(
                f"label_map of {self.owner}: {key} -> {value}, but the {num_classes} classes "
                f"have the ids 0 to {num_classes - 1} (255 = ignored); correct label_map or "
                "classes"
            )
        return int(value)

    def _check_id(self, key) -> int:
        if isinstance(key, bool) or not isinstance(key, (int, np.integer)) or not 0 <= key < 65536:
            raise DataError(
                f"label_map of {self.owner}: the key {key!r} is no id of a label file (0 to "
                '65535) and no colour "r,g,b"'
            )
        return int(key)

    def _check_color(self, key) -> Colour:
        parts = key.split(",") if isinstance(key, str) else key
        try:
            color = tuple(int(part) for part in parts)
        except ValueError:
            color = ()
        if len(color) != 3 or not all(0 <= part <= 255 for part in color):
            raise DataError(
                f'label_map of {self.owner}: the key {key!r} is no colour; write it "r,g,b" '
                "with three numbers from 0 to 255"
            )
        return color


def _packed(raw: np.ndarray) -> np.ndarray:
    return raw[:, :, 0].astype(np.int32) << 16 | raw[:, :, 1].astype(np.int32) << 8 | raw[:, :, 2]


def _yaml(key: Key) -> str:
    return str(key) if isinstance(key, int) else '"{},{},{}"'.format(*key)


def _runs(items: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """Neighbouring ids that map alike, as (first id, last id, first target, last target)."""
    runs: list[tuple[int, int, int, int]] = []
    for key, value in items:
        if runs:
            first, last, start, end = runs[-1]
            ignored = value == end == IGNORE and start == IGNORE
            counted = value == end + 1 and end - start == last - first and value != IGNORE
            if key == last + 1 and (ignored or counted):
                runs[-1] = (first, key, start, value)
                continue
        runs.append((key, key, value, value))
    return runs


def _describe(first: int, last: int, start: int, end: int) -> str:
    if first == last:
        return f"{first} = ignored" if start == IGNORE else f"{first} -> {start}"
    return f"{first}..{last} = ignored" if start == IGNORE else f"{first}..{last} -> {start}..{end}"


def _target(value: int) -> str:
    return "ignored" if value == IGNORE else str(value)
