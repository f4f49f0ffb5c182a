"""The folder of predictions: every input once, whoever works on it, and nobody's files overwritten."""

import errno
import json
import os

import cv2
import numpy as np
import pytest

from tests.conftest import failure
from tests.prediction import image_of, plain, run, write_image
from tool.predict import Segmenter
from tool.shared import predictions
from tool.shared.predictions import INDEX, Predictions, share_of_this_process
from util import UserError

pytestmark = pytest.mark.fast
DEAD = 2**22 + 1  # above the largest number of a process on Linux


def entries(out):
    return [json.loads(line) for line in (out / INDEX).read_text().splitlines()]


def test_another_picture_of_the_same_name_is_not_taken_for_done(tmp_path, toy_weights, capsys):
    first, second = write_image(tmp_path / "a" / "x.png", 1), write_image(tmp_path / "b" / "x.png", 2)
    out = tmp_path / "out"
    assert run(toy_weights, first, "--out", out) == 0
    before = (out / "x.png").read_bytes()
    assert run(toy_weights, second, "--out", out) == 1
    assert f"x.png is the result of {first}" in "".join(capsys.readouterr())
    assert (out / "x.png").read_bytes() == before


def test_what_another_call_saves_is_added(tmp_path, toy_weights):
    photo, out = write_image(tmp_path / "a.png"), tmp_path / "out"
    assert run(toy_weights, photo, "--out", out) == 0
    assert run(toy_weights, photo, "--out", out, "--save", "color") == 0
    assert (out / "color" / "a.png").is_file()
    assert run(toy_weights, photo, "--out", out) == 0
    assert [entry["save"] for entry in entries(out)[1:]] == [[], ["color"]]


def test_files_that_are_no_results_are_not_overwritten(tmp_path, toy_weights, capsys):
    """Such as labels: predicting pictures into the folder of their labels would be their end."""
    photo, label = write_image(tmp_path / "images" / "a.png"), write_image(tmp_path / "labels" / "a.png", 5)
    os.utime(label, (1e9, 1e9))
    before = label.read_bytes()
    assert run(toy_weights, photo, "--out", tmp_path / "labels") == 1
    assert "a.png is there already, and no result" in "".join(capsys.readouterr())
    assert label.read_bytes() == before


def test_a_result_that_a_kill_left_out_of_the_index_is_made_again(tmp_path, toy_weights):
    out = tmp_path / "out"
    photos = [write_image(tmp_path / "in" / f"{name}.png", seed) for seed, name in enumerate("ab")]
    assert run(toy_weights, photos[0], "--out", out) == 0
    (out / "b.png").write_bytes(b"half")
    assert run(toy_weights, tmp_path / "in", "--out", out) == 0
    assert np.array_equal(cv2.imread(str(out / "b.png"), cv2.IMREAD_UNCHANGED), plain(toy_weights, image_of(1)))


@pytest.mark.parametrize("left", ["", '{"checkpoint": "to', '{"checkpoint": "toy.pth", "sha2\n'])
def test_a_first_line_that_was_cut_short_is_written_anew(tmp_path, toy_weights, left):
    photo, out = write_image(tmp_path / "a.png"), tmp_path / "out"
    out.mkdir()
    (out / INDEX).write_text(left)
    for _ in range(2):
        assert run(toy_weights, photo, "--out", out) == 0
    lines = [line for line in (out / INDEX).read_text().splitlines() if line.endswith("}")]
    assert [*map(json.loads, lines)][1]["mask"] == "a.png" and len(lines) == 2


def test_two_commands_in_one_folder_note_each_picture_once(tmp_path, toy_weights):
    photo, out = write_image(tmp_path / "a.png"), tmp_path / "out"
    segmenter = Segmenter(toy_weights)
    one, two = (Predictions(out, segmenter, []) for _ in range(2))
    assert not one.has(out / "a.png", photo) and not two.has(out / "a.png", photo)
    one.write(out / "a.png", photo, segmenter(photo))
    two.update()
    assert two.has(out / "a.png", photo)
    two.write(out / "a.png", photo, segmenter(photo))
    assert [entry.get("mask") for entry in entries(out)] == [None, "a.png"]


def test_an_unfinished_file_is_removed_if_its_process_is_gone(tmp_path, toy_weights):
    photo, out = write_image(tmp_path / "a.png"), tmp_path / "out"
    out.mkdir()
    gone, alive, other = (
        out / f".{name}.{pid}.0123abcd.part" for name, pid in (("a.png", DEAD), ("a.png", 1), ("b.png", DEAD))
    )
    for file in (gone, alive, other):
        file.touch()
    assert run(toy_weights, photo, "--out", out) == 0
    assert not gone.exists() and alive.exists() and other.exists()


def test_a_full_disk_names_the_file_and_stops(tmp_path, toy_weights, monkeypatch, capsys):
    for name in "ab":
        write_image(tmp_path / "in" / f"{name}.png")
    out, write = tmp_path / "out", os.write

    def full(number, data):
        if b'"mask"' not in data:
            return write(number, data)
        write(number, data[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    assert f"{out / INDEX}: No space left on device" in failure(capsys, run, toy_weights, tmp_path / "in", "--out", out)
    assert len(entries(out)) == 1 and not (out / "b.png").exists()


def test_a_folder_that_is_a_file_is_named(tmp_path, toy_weights, capsys):
    photo = write_image(tmp_path / "a.png")
    assert f"{photo}: a file" in failure(capsys, run, toy_weights, photo, "--out", photo)


def test_pictures_do_not_mix_with_what_is_drawn(tmp_path, toy_weights, capsys):
    write_image(tmp_path / "in" / "a.png")
    write_image(tmp_path / "in" / "color" / "a.png")
    told = failure(capsys, run, toy_weights, tmp_path / "in", "--out", tmp_path / "out", "--save", "color")
    assert "--save color" in told


@pytest.mark.parametrize(
    ("array", "torchrun", "first", "count"),
    [((0, 0, 3, 4, 1), (0, 1), 0, 4), ((7, 3, 9, 4, 2), (0, 1), 2, 4), ((1, 0, 1, 2, 1), (2, 3), 5, 6)],
)
def test_the_share_of_a_task(monkeypatch, array, torchrun, first, count):
    names = ("ID", "MIN", "MAX", "COUNT", "STEP")
    for name, value in zip(names, array, strict=True):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    monkeypatch.setenv("RANK", str(torchrun[0]))
    monkeypatch.setenv("WORLD_SIZE", str(torchrun[1]))
    share = share_of_this_process()
    assert (share.first, share.count) == (first, count)


def test_an_array_with_gaps_is_refused(monkeypatch):
    """As of tasks that are started anew, --array=3,7: each would take a half, and the inputs between were nobody's."""
    for name, value in {"ID": 3, "MIN": 3, "MAX": 7, "COUNT": 2, "STEP": 1}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    with pytest.raises(UserError, match="--array=0-1"):
        share_of_this_process()


def test_the_index_is_kept_where_there_are_no_locks(tmp_path, toy_weights, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(predictions.fcntl, "flock", no_locks)
    photo = write_image(tmp_path / "a.png")
    assert run(toy_weights, photo, "--out", tmp_path / "out") == 0
    assert len(entries(tmp_path / "out")) == 2


def test_where_there_is_no_terminal_lines_say_how_far_it_is(tmp_path, toy_weights, monkeypatch, capsys):
    for name in "abc":
        write_image(tmp_path / "in" / f"{name}.png")
    monkeypatch.setattr("tool.predict.EVERY", 0.0)
    assert run(toy_weights, tmp_path / "in", "--out", tmp_path / "out") == 0
    assert "1 of 3 pictures, " in capsys.readouterr().out


def test_a_picture_that_takes_too_much_memory_stops_nothing(tmp_path, toy_weights, monkeypatch, capsys):
    for name, width in (("a", 64), ("b", 80)):
        write_image(tmp_path / "in" / f"{name}.png", size=(48, width))
    mask = Segmenter.mask

    def full(self, image):
        if image.shape[1] == 64:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return mask(self, image)

    monkeypatch.setattr(Segmenter, "mask", full)
    assert run(toy_weights, tmp_path / "in", "--out", tmp_path / "out") == 1
    assert "a.png: takes more memory than there is; try a smaller --tile" in "".join(capsys.readouterr())
    assert (tmp_path / "out" / "b.png").is_file()


def test_an_interrupted_call_continues(tmp_path, toy_weights, monkeypatch, capsys):
    for name in "abc":
        write_image(tmp_path / "in" / f"{name}.png")
    out, write = tmp_path / "out", Predictions.write

    def interrupted(self, target, *more):
        if target.name == "b.png":
            raise KeyboardInterrupt
        write(self, target, *more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Predictions, "write", interrupted)
        run(toy_weights, tmp_path / "in", "--out", out)
    assert "1 predicted" in capsys.readouterr().out
    assert run(toy_weights, tmp_path / "in", "--out", out) == 0
    assert [entry.get("mask") for entry in entries(out)[1:]] == ["a.png", "b.png", "c.png"]
