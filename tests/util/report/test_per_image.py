"""Counts of single images: written, read, refused, and never a formula."""

import csv
import math

import numpy as np
import pytest

from util import UserError
from util.record.table import cell, csv_bytes
from util.report.per_image import ImageScore, joined, read_per_image, sparse_counts, write_per_image

pytestmark = pytest.mark.fast
CLASSES = ("sky", "grass", "ball")


def score(name: str, truth, prediction) -> ImageScore:
    cells, counts = sparse_counts(np.array(truth, np.uint8), np.array(prediction, np.uint8), len(CLASSES))
    return ImageScore(name, cells, counts, 0.5, math.nan)


SCORES = [
    score("a", [[0, 0, 1], [1, 255, 1]], [[0, 1, 1], [1, 2, 1]]),
    score("=b", [[255, 255]], [[0, 1]]),
    score("c/d", [[2, 2]], [[2, 0]]),
]


def test_the_sums_by_hand():
    hits, labelled, predicted = joined(SCORES, CLASSES).sums()
    assert hits.tolist() == [[1, 3, 0], [0, 0, 0], [0, 0, 1]]
    assert labelled.tolist() == [[2, 3, 0], [0, 0, 0], [0, 0, 2]]
    assert predicted.tolist() == [[1, 4, 0], [0, 0, 0], [1, 0, 1]]
    # a: sky 1/2, grass 3/4, ball nowhere; c: sky 0/1, ball 1/2.
    assert joined(SCORES, CLASSES).mean_iou() == pytest.approx([0.625, math.nan, 0.25], nan_ok=True)


def test_what_is_written_is_read(tmp_path):
    written = write_per_image(tmp_path, SCORES, CLASSES)
    found = read_per_image(tmp_path / "per_image.npz")
    assert found.names == ("a", "=b", "c/d") and found.classes == CLASSES
    assert all(map(np.array_equal, found.sums(), written.sums()))
    with open(tmp_path / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["a", "'=b", "c/d"]
    assert rows[0]["mIoU"] == "0.625" and rows[0]["allAcc"] == "0.8" and rows[1]["mIoU"] == ""


@pytest.mark.parametrize("damage", ["cut", "text", "other"])
def test_damaged_counts_are_refused_by_name(tmp_path, damage):
    write_per_image(tmp_path, SCORES, CLASSES)
    file = tmp_path / "per_image.npz"
    if damage == "other":
        content = dict(np.load(file))
        content["starts"] = content["starts"][:-1]
        np.savez(file, **content)
    else:
        file.write_bytes(file.read_bytes()[:-40] if damage == "cut" else b"no such thing")
    with pytest.raises(UserError, match=r"per_image\.npz: damaged"):
        read_per_image(file)
    with pytest.raises(FileNotFoundError, match=r"test\.report=true"):
        read_per_image(tmp_path / "missing.npz")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "  =1", "\t=1", "\r=1"])
def test_text_is_never_a_formula(text):
    safe = cell(text)
    assert safe.startswith("'") and safe.isprintable()
    assert cell(-1.5) == -1.5 and cell("road") == "road"


def test_control_characters_do_not_reach_a_terminal():
    assert csv_bytes(["a\x1b[2J"], [["b\nc\x00", None]]) == b"a [2J\nb c ,\n"
