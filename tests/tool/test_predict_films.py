"""Films: their rate, their sound, what is cut short, and which of them are done."""

import json
import os
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from tests.prediction import image_of, run, write_image
from tool.shared import film as module
from tool.shared.film import predict_film
from tool.shared.predictions import INDEX
from tool.shared.segmenter import Segmenter
from util import UserError

pytestmark = pytest.mark.fast


def write_film(path, frames=3, rate=12.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, (64, 48))
    for seed in range(frames):
        writer.write(image_of(seed))
    writer.release()
    return path


def frames_of(path):
    capture, frames = cv2.VideoCapture(str(path)), []
    while (found := capture.read())[0]:
        frames.append(found[1])
    return frames


class Changing:
    """A film whose frames come at the given times, each of one brightness; its mean rate is 10 a second."""

    def __init__(self, times):
        self.times, self.at = times, -1

    def read(self):
        self.at += 1
        there = self.at < len(self.times)
        return there, np.full((48, 64, 3), 20 * self.at, np.uint8) if there else None

    def get(self, what):
        known = {cv2.CAP_PROP_FPS: 10.0, cv2.CAP_PROP_FRAME_COUNT: len(self.times)}
        return known[what] if what in known else 1000 * self.times[self.at]


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        ([0.1 * i for i in range(8)], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([5 + 0.1 * i + 0.03 * (i % 2) for i in range(8)], [0, 1, 2, 3, 4, 5, 6, 7]),  # not from 0 on, not exactly
        ([0, 0.05, 0.1, 0.15, 0.2, 0.5, 0.6, 0.7], [0, 1, 3, 4, 4, 5, 6, 7]),
        ([0, 0.1, 9999, 0.3], [0, 1, 1, 2]),  # a damaged time
        ([0, 0, 0, 0], [0, 1, 2, 3]),  # a container without times
    ],
)
def test_frames_of_a_changing_rate_are_shown_at_their_time(tmp_path, toy_weights, monkeypatch, times, shown):
    segmenter, written = Segmenter(toy_weights), []

    class Writer:
        def __init__(self, *_):
            self.release = lambda: None
            self.isOpened = lambda: True
            self.write = lambda frame: written.append(frame)

    monkeypatch.setattr(module.cv2, "VideoWriter", type("W", (Writer,), {"fourcc": staticmethod(lambda *_: 0)}))
    monkeypatch.setattr(module, "_check_written", lambda file, frames: None)
    monkeypatch.setattr(type(segmenter), "__call__", lambda self, image: Echo(image))
    assert module._draw(Changing(times), tmp_path / "x.mp4", None, segmenter, False) == len(times)
    found = [int(frame[0, 0, 0]) // 20 for frame in written]
    assert found == shown, found


class Echo:
    """A prediction that shows the picture."""

    def __init__(self, image):
        self.overlay = lambda: image


def test_films_are_done_once_and_named_apart(tmp_path, toy_weights, monkeypatch):
    out, seen = tmp_path / "out", []
    for name in ("a.avi", "a.mkv", "sub/b.avi"):
        write_film(tmp_path / "in" / name)
    write_image(tmp_path / "in" / "a.png")
    predict = predict_film
    monkeypatch.setattr("tool.predict.predict_film", lambda film, *more: (seen.append(film), predict(film, *more))[1])
    for _ in range(2):
        assert run(toy_weights, tmp_path / "in", "--out", out) == 0
    names = {str(path.relative_to(out)) for path in out.rglob("*.*")}
    assert names == {"a.avi.mp4", "a.mkv.mp4", "sub/b.mp4", "a.png", INDEX} and len(seen) == 3
    assert run(toy_weights, tmp_path / "in", "--out", out, "--save", "mask") == 0
    assert len(seen) == 6 and len(list((out / "sub" / "b").iterdir())) == 3
    entries = [json.loads(line) for line in (out / INDEX).read_text().splitlines()]
    assert [entry["frames"] for entry in entries if "film" in entry] == [3] * 6


def test_a_film_that_is_cut_short_is_told_and_kept(tmp_path, toy_weights, capsys):
    film = write_film(tmp_path / "film.avi", frames=30)
    data = film.read_bytes()
    film.write_bytes(data[: len(data) // 2])
    for _ in range(2):  # it is not taken for done
        assert run(toy_weights, film, "--out", tmp_path / "out") == 1
        assert "of 30 frames could be decoded" in "".join(capsys.readouterr())
    assert 0 < len(frames_of(tmp_path / "out" / "film.mp4")) < 30


def test_a_film_that_was_not_written_whole_is_refused(tmp_path, toy_weights, monkeypatch):
    """As a full disk leaves it, of which OpenCV says nothing."""
    film, real = write_film(tmp_path / "film.avi"), cv2.VideoWriter

    class Cut:
        def __init__(self, file, *more):
            self.file, self.writer = file, real(file, *more)
            self.write, self.isOpened = self.writer.write, self.writer.isOpened

        def release(self):
            self.writer.release()
            os.truncate(self.file, 100)

    monkeypatch.setattr(module.cv2, "VideoWriter", type("W", (Cut,), {"fourcc": real.fourcc}))
    with pytest.raises(UserError, match="0 of 3 frames of a film were written"):
        predict_film(str(film), tmp_path / "out" / "film.mp4", Segmenter(toy_weights), False)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize(("end", "sound"), [("avi", "pcm_s16le"), ("mkv", "flac"), ("mp4", "aac")])
def test_the_sound_is_kept(tmp_path, toy_weights, end, sound):
    film = tmp_path / f"film.{end}"
    words = ["-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=1", "-f", "lavfi", "-i", "sine=d=1", "-c:a", sound]
    subprocess.run(["ffmpeg", "-loglevel", "error", *words, "-strict", "-2", str(film)], check=True)
    assert run(toy_weights, film, "--out", tmp_path / "out") == 0
    told = subprocess.run(["ffmpeg", "-i", str(tmp_path / "out" / "film.mp4")], capture_output=True, text=True)
    assert told.stderr.count("Audio:") == 1 and "25 fps" in told.stderr
