"""Measurements of single images for the report, taken beside the predictions."""

import heapq
import math
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from util import dist
from util.report.boundary import band_counts, boundary_f
from util.report.per_image import ImageScore, mean_iou, sparse_counts
from util.report.sizes import SIZES, size_counts
from util.report.visual import as_rgb, colorize, jpeg, png

IGNORE = 255
EXTREMES = 3  # best and worst images that are shown, and as many of the middle
SPREAD = 60  # images of the list among which those of the middle are sought
WIDTH = 512  # of a picture in the report, pixels
QUALITY = 80  # of its photos as JPEG
WRONG = (230, 40, 40)
LARGE, LARGEST = 2**22, 2**24  # pixels of an image from which on: one at a time; without boundaries and sizes


@dataclass(frozen=True)
class Shown:
    """An image of the report.

    pictures: encoded, (MIME type, bytes) by title.
    """

    name: str
    mean_iou: float
    pictures: dict[str, tuple[str, bytes]]


Entry = tuple[float, int, Shown]  # score, negative place in the list, picture


@dataclass(frozen=True)
class Measured:
    """All images together.

    boundary_f: float (C,), the mean of each class over the images that have its boundary; nan without one.
    image_f: the mean over the images of the mean over their classes.
    band: intersection and union of the boundary bands, int64 (2, C). sizes: of objects, int64 (2, sizes, C).
    beyond: images that are too large for these two.
    """

    scores: tuple[ImageScore, ...]
    boundary_f: np.ndarray
    image_f: float
    band: np.ndarray
    sizes: np.ndarray
    shown: tuple[Shown, ...]
    beyond: int


class Details:
    """`on_prediction` of evaluate(): measures labelled images.

    Threads may call it at once.

    Args:
        names: of all images of the evaluation, on every process.
        colors: uint8 (C, 3).
        void: ignored pixels are the last class, which has no part in the means.
    """

    def __init__(self, names: Sequence[str], colors: np.ndarray, void: bool = False):
        self.position = {name: index for index, name in enumerate(names)}
        self.colors, self.classes = colors, len(colors)
        self._void, self._scored = void, len(colors) - void
        self._step = max(len(names) // SPREAD, 1)
        self._lock, self._one_large = threading.Lock(), threading.Lock()
        self._beyond = 0
        self._scores: list[ImageScore] = []
        self._f_sum, self._f_count = np.zeros(self._scored), np.zeros(self._scored, np.int64)
        self._band = np.zeros((2, self._scored), np.int64)
        self._sizes = np.zeros((2, len(SIZES), self._scored), np.int64)
        self._best: list[Entry] = []  # heaps, the one that goes first on top
        self._worst: list[Entry] = []
        self._spread: list[Shown] = []

    def __call__(self, sample: dict, prediction: np.ndarray) -> None:
        name, truth = sample["name"], sample["label"].numpy()
        if self._void:
            truth = np.where(truth == IGNORE, np.uint8(self._scored), truth)
        cells, counts = sparse_counts(truth, prediction, self.classes)
        matrix = np.zeros((self.classes, self.classes), np.int64)
        matrix.ravel()[cells] = counts
        right = matrix.diagonal()
        score = float(mean_iou(right[: self._scored], (matrix.sum(0) + matrix.sum(1) - right)[: self._scored]))
        f, band, sizes = self._outlines(truth, prediction)
        there = ~np.isnan(f)
        means = float(f[there].mean()) if there.any() else math.nan, float(mean_iou(*band))
        with self._lock:
            self._scores.append(ImageScore(name, cells, counts, *means))
            self._f_sum[there] += f[there]
            self._f_count += there
            self._band += band
            self._sizes += sizes
            wanted = not math.isnan(score) and self._wanted(score, self.position[name])
        if wanted:
            self._keep(score, self.position[name], self._picture(sample, truth, prediction, score))

    def _outlines(self, truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Score boundaries and sizes of the scored classes; an image beyond LARGEST is left out."""
        scored = np.s_[..., : self._scored]
        if truth.size > LARGEST:
            self._beyond += 1
            return np.full(self._scored, np.nan), np.zeros_like(self._band), np.zeros_like(self._sizes)
        # Some 50 bytes a pixel are needed: large images one after the other.
        with self._one_large if truth.size > LARGE else nullcontext():
            f = boundary_f(truth, prediction, self.classes)
            band = np.stack(band_counts(truth, prediction, self.classes))
            return f[scored], band[scored], size_counts(truth, prediction, self.classes)[scored]

    def _wanted(self, score: float, position: int) -> bool:
        """Whether an image may be one of those that are shown; equal ones by their place in the list."""
        return (
            position % self._step == 0
            or len(self._best) < EXTREMES
            or (score, -position) > self._best[0][:2]
            or len(self._worst) < EXTREMES
            or (-score, -position) > self._worst[0][:2]
        )

    def _keep(self, score: float, position: int, shown: Shown) -> None:
        with self._lock:
            for heap, key in ((self._best, score), (self._worst, -score)):
                heapq.heappush(heap, (key, -position, shown))
                if len(heap) > EXTREMES:
                    heapq.heappop(heap)
            if position % self._step == 0:
                self._spread.append(shown)

    def _picture(self, sample: dict, truth: np.ndarray, prediction: np.ndarray, score: float) -> Shown:
        """Encode an image, its truth, its prediction and where they differ, small."""
        image = np.ascontiguousarray(as_rgb(sample["image"].permute(1, 2, 0).numpy()))
        height, width = truth.shape
        size = (min(width, WIDTH), max(round(height * min(width, WIDTH) / width), 1))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        labels = [cv2.resize(label, size, interpolation=cv2.INTER_NEAREST) for label in (truth, prediction)]
        true, predicted = (png(colorize(label, self.colors)) for label in labels)
        wrong = ((truth != prediction) & (truth != IGNORE)).astype(np.float32)
        share = cv2.resize(wrong, size, interpolation=cv2.INTER_AREA)[..., None]
        gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)[..., None] * 0.5 + 60
        gray[labels[0] == IGNORE] = 0
        errors = gray * (1 - share) + np.array(WRONG, np.float32) * share
        pictures = {
            "image": ("image/jpeg", jpeg(small, QUALITY)),
            "truth": ("image/png", true),
            "prediction": ("image/png", predicted),
            "errors": ("image/jpeg", jpeg(np.round(errors).astype(np.uint8), QUALITY)),
        }
        return Shown(sample["name"], score, pictures)

    def gather(self, alone: bool = False) -> Measured:
        """Join the measurements of all processes.

        Every process calls it, after its last image; or one of them `alone`, for its own.
        """
        mine = (self._scores, self._f_sum, self._f_count, self._band, self._sizes, self._beyond)
        found = (self._best, self._worst, self._spread)
        parts: list[Any] = [(mine, found)] if alone else dist.gather_objects((mine, found))
        scores = sorted((s for part, _ in parts for s in part[0]), key=lambda score: self.position[score.name])
        f_sum, f_count, band, sizes = (np.sum([part[index] for part, _ in parts], 0) for index in range(1, 5))
        image_f = [score.boundary_f for score in scores if not math.isnan(score.boundary_f)]
        return Measured(
            tuple(scores),
            np.where(f_count > 0, f_sum / np.maximum(f_count, 1), np.nan),
            float(np.mean(image_f)) if image_f else math.nan,
            band,
            sizes,
            self._chosen([images for _, images in parts]),
            sum(part[5] for part, _ in parts),
        )

    def _chosen(self, parts: list[tuple[list[Entry], list[Entry], list[Shown]]]) -> tuple[Shown, ...]:
        """Choose the best, those nearest to the median, and the worst; no image twice."""
        best = sorted((entry for part in parts for entry in part[0]), reverse=True)
        worst = sorted((entry for part in parts for entry in part[1]), reverse=True)
        chosen = {entry[2].name: entry[2] for entry in best[:EXTREMES]}
        last = {entry[2].name: entry[2] for entry in reversed(worst[:EXTREMES]) if entry[2].name not in chosen}
        median = float(np.median([shown.mean_iou for part in parts for shown in part[2]] or [0.0]))
        others = (shown for part in parts for shown in part[2] if shown.name not in {**chosen, **last})
        middle = sorted(others, key=lambda shown: (abs(shown.mean_iou - median), self.position[shown.name]))[:EXTREMES]
        middle.sort(key=lambda shown: -shown.mean_iou)
        return (*chosen.values(), *middle, *last.values())
