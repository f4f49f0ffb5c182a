"""history.csv keeps one line an epoch, whatever was killed and continued."""

import csv
import math

import pytest

from util.record import history

pytestmark = pytest.mark.fast


def lines(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.reader(file))


def test_a_run_that_continues_leaves_no_double_line(tmp_path):
    for epoch in (1, 2, 3):
        history.add(tmp_path, epoch, {"mIoU": epoch / 10, "IoU =road": math.nan})
    history.add(
        tmp_path, 2, {"mIoU": 0.25, "IoU =road": 0.5}
    )  # killed after its third validation, continued from the first
    assert lines(tmp_path) == [["epoch", "mIoU", "IoU =road"], ["1", "0.1", ""], ["2", "0.25", "0.5"]]


def test_a_negative_loss_stays_a_number_and_any_name_of_a_class_keeps_the_lines(tmp_path):
    for epoch in (1, 2, 3):
        history.add(tmp_path, epoch, {"step": 4 * epoch, "loss": -0.5 * epoch, 'IoU a,"b"': 0.5, "IoU c\u00a0d": None})
    header, *rows = lines(tmp_path)
    assert header == ["epoch", "step", "loss", 'IoU a,"b"', "IoU c d"]
    assert rows == [["1", "4", "-0.5", "0.5", ""], ["2", "8", "-1.0", "0.5", ""], ["3", "12", "-1.5", "0.5", ""]]


def test_a_run_on_other_classes_begins_anew(tmp_path):
    history.add(tmp_path, 1, {"mIoU": 0.1, "IoU a": 0.1})
    history.add(tmp_path, 2, {"mIoU": 0.2, "IoU b": None})
    assert lines(tmp_path) == [["epoch", "mIoU", "IoU b"], ["2", "0.2", ""]]


def test_a_damaged_line_is_left_out(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,mIoU\n1,0.5\n2\nx,0.5\n")
    assert history.read(tmp_path / "history.csv") == [{"epoch": "1", "mIoU": "0.5"}]
    assert history.read(tmp_path / "missing.csv") == []
