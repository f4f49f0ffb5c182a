"""Maps what stands in a label file to the ids that a network is trained with."""

from collections.abc import Mapping

import cv2
import numpy as np

from dataset.read import DataError

IGNORE = 255
MAX_CLASSES = 255

Colour = tuple[int, int, int]


class LabelMap:
    """Maps ids 0..65535, or RGB colours, to training ids 0..C-1 and 255 (ignored).

    An id or colour that is not a key is an error when a label holds it, only 255 on disk stays ignored unless it is
    mapped.

    Args:
        mapping: keys are ids, or colours given as (r, g, b) or as the text "r,g,b"; values are training ids or 255.
            None: the identity over 0..num_classes-1.
        num_classes: 1 to 255.
        owner: the data set the map belongs to, for errors.

    Raises:
        ValueError: names the owner and the key or value that is out of range.
    """

    def __init__(self, mapping: Mapping | None, num_classes: int, owner: str):
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
        self.has_ids = bool(self.ids)
        self.ids.setdefault(IGNORE, IGNORE)
        self.table = np.full(65536, IGNORE, np.uint8)
        self.unknown = np.ones(65536, np.uint8)
        for key, value in self.ids.items():
            self.table[key], self.unknown[key] = value, 0
        self._color_table: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_color_table": None}

    def apply(self, raw: np.ndarray, path: str = "label") -> np.ndarray:
        """Map ids uint8 or uint16 (H, W), or colours uint8 (H, W, 3), to training ids uint8 (H, W).

        Raises:
            ValueError: names `path`, the values that are not in the map, and the map.
        """
        if raw.ndim == 3:
            return self._apply_colors(raw, path)
        if not self.has_ids:
            raise DataError(
                f"{path}: a label of ids, but {self.owner} maps colours only "
                f"({self}); use the colour label, or add the ids to label_map"
            )
        if raw.dtype == np.uint8:
            unknown = cv2.LUT(raw, self.unknown[:256])
            label = cv2.LUT(raw, self.table[:256])
        else:
            unknown, label = self.unknown[raw], self.table[raw]
        if cv2.countNonZero(unknown):
            raise DataError(self._message(path, np.unique(raw[unknown > 0])))
        return label

    def __str__(self) -> str:
        parts = [_describe(*run) for run in _runs(sorted(self.ids.items()))]
        if self.colors:
            shown = [f"rgb {key} -> {_target(value)}" for key, value in list(self.colors.items())[:3]]
            rest = len(self.colors) - len(shown)
            parts += shown + ([f"and {rest} more colours"] if rest > 0 else [])
        return ", ".join(parts)

    def _apply_colors(self, raw: np.ndarray, path: str) -> np.ndarray:
        if not self.colors:
            raise DataError(
                f"{path}: a label of three channels, where one channel of ids is wanted; {self._advice(raw)}"
            )
        if self._color_table is None:
            # Zero means unknown, so the 32 MiB stay untouched (and unallocated) but for the known colours.
            self._color_table = np.zeros(1 << 24, np.uint16)
            for (r, g, b), value in self.colors.items():
                self._color_table[r << 16 | g << 8 | b] = value + 1
        packed = raw[:, :, 0].astype(np.int32) << 16 | raw[:, :, 1].astype(np.int32) << 8 | raw[:, :, 2]
        found = self._color_table[packed]
        if not found.all():
            keys = np.unique(packed[found == 0])
            raise DataError(self._message(path, [f"({k >> 16}, {k >> 8 & 255}, {k & 255})" for k in keys]))
        return (found - 1).astype(np.uint8)

    def _advice(self, raw: np.ndarray) -> str:
        if (raw == raw[:, :, :1]).all():
            return "its three channels are equal: save one of them"
        return (
            f"{self.owner} has no colours to read it by: convert it to class ids, or give label_map with "
            'the keys "r,g,b"'
        )

    def _message(self, path: str, values) -> str:
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
