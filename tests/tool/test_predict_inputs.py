"""What a command line may name: lists of every kind, folders, the standard input; names of the results."""

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.prediction import image_of, plain, run, write_image
from tool.shared.inputs import Inputs, pictures_of
from util import UserError

pytestmark = pytest.mark.fast


def encoded(seed=0, end=".png", **size) -> bytes:
    return cv2.imencode(end, cv2.cvtColor(image_of(seed, **size), cv2.COLOR_RGB2BGR))[1].tobytes()


class Pipe(io.TextIOWrapper):
    """A standard input of bytes."""

    def __init__(self, data: bytes):
        super().__init__(io.BufferedReader(io.BytesIO(data)))


@pytest.mark.parametrize(
    "text",
    [
        b"a.png\nsub/b c.png\n",
        b"\xef\xbb\xbfa.png\r\n\r\n  sub/b c.png  \r\n",
        "a.png\nsub/b c.png\n".encode("utf-16"),
        b"a.png\0sub/b c.png\0",
        b"a.png labels/a.png\n'sub/b c.png' labels/b.png\n",
        b"a.png\nsub\n",
    ],
    ids=["plain", "of Windows", "of PowerShell", "of find -print0", "of a data set", "with a folder"],
)
def test_lists(tmp_path, text):
    found = [write_image(tmp_path / name) for name in ("a.png", "sub/b c.png")]
    (tmp_path / "list.txt").write_bytes(text)
    inputs = Inputs([str(tmp_path / "list.txt")], tmp_path / "out")
    assert [Path(path) for path, _ in inputs.pictures] == found and not inputs.failures


def test_names_that_are_no_text(tmp_path):
    place = os.fsencode(tmp_path) + b"/\xe9.png"
    with open(place, "wb") as file:
        file.write(encoded())
    (tmp_path / "list.txt").write_bytes(b"\xe9.png\n")
    for word in (tmp_path, tmp_path / "list.txt"):
        assert [os.fsencode(path) for path, _ in Inputs([str(word)], tmp_path / "out").pictures] == [place]


def test_what_leads_nowhere_stops_nothing(tmp_path, toy_weights, capsys):
    photo = write_image(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    words = [tmp_path / "gone", tmp_path / "gone.txt", tmp_path / "empty", tmp_path / "empty.txt", "https://host/a.png"]
    assert run(toy_weights, *words, photo, "--out", tmp_path / "out") == 1
    told = "".join(capsys.readouterr())
    for text in (
        "gone: no such",
        "gone.txt: no such",
        "empty: no picture",
        "empty.txt: names no picture",
        "a URL",
        "5 inputs",
    ):
        assert text in told
    assert (tmp_path / "out" / "a.png").is_file()


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    photo, closed = write_image(tmp_path / "a.png"), tmp_path / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(closed))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    inputs = Inputs([str(tmp_path)], tmp_path / "out")
    assert [Path(path) for path, _ in inputs.pictures] == [photo]
    assert inputs.failures == [f"{closed}: Permission denied"]


def test_a_folder_of_pictures_and_films(tmp_path):
    for name in ("a.jpg", "sub/a.mp4", ".hidden/a.png", "out/a.png", "notes.md", "._a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    inputs = Inputs([str(tmp_path)], tmp_path / "out")
    assert [str(inner) for _, inner in inputs.pictures] == ["a.jpg"]
    assert [str(inner) for _, inner in inputs.films] == ["sub/a.mp4"]


def test_links_to_folders_are_followed_once(tmp_path):
    write_image(tmp_path / "elsewhere" / "a.png")
    write_image(tmp_path / "in" / "sub" / "b.png")
    for name, target in (("data", "elsewhere"), ("sub/loop", "in"), ("twice", "elsewhere")):
        (tmp_path / "in" / name).symlink_to(tmp_path / target)
    inputs = Inputs([str(tmp_path / "in")], tmp_path / "out")
    assert [inner for _, inner in inputs.pictures] == ["data/a.png", "sub/b.png"]


def test_a_number_is_a_camera_unless_there_is_such_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "0" / "a.png")
    inputs = Inputs(["0", "1"], tmp_path / "out")
    assert inputs.cameras == ["1"] and len(inputs.pictures) == 1


@pytest.mark.parametrize("end", [".png", ".jpg"])
def test_pictures_that_follow_each_other(end):
    """Of more than the 8,192 bytes that a stream reads at once, so that they end anywhere in them."""
    files = [encoded(seed, end, size=(60 + seed, 70)) for seed in range(9)]
    stream = io.BufferedReader(io.BytesIO(b"".join(files) + b"ftypmp42"))
    assert [*pictures_of(stream)] == [(file, end) for file in files]


@pytest.mark.parametrize("end", [".png", ".jpg"])
def test_a_picture_that_is_cut_short_in_the_stream(end):
    for left in (5, 30, len(encoded(end=end)) - 9):
        data = encoded(end=end)[:left]
        assert [*pictures_of(io.BufferedReader(io.BytesIO(data)))] == [(data, end)]


def test_pictures_from_the_standard_input(tmp_path, toy_weights, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr("sys.stdin", Pipe(encoded(1)))
    assert run(toy_weights, "-", "--out", out) == 0
    assert np.array_equal(cv2.imread(str(out / "stdin.png"), cv2.IMREAD_UNCHANGED), plain(toy_weights, image_of(1)))
    monkeypatch.setattr("sys.stdin", Pipe(encoded(2) + encoded(3)[:40]))
    assert run(toy_weights, "-", "--out", out) == 1
    told = "".join(capsys.readouterr())
    assert "1 predicted" in told and "picture 2 of the standard input: not a readable picture" in told
    monkeypatch.setattr("sys.stdin", Pipe(encoded(2) + encoded(3)))
    assert run(toy_weights, "-", "--out", out) == 0
    assert np.array_equal(
        cv2.imread(str(out / "stdin" / "000001.png"), cv2.IMREAD_UNCHANGED), plain(toy_weights, image_of(3))
    )


def test_the_standard_input_overwrites_nobody(tmp_path, toy_weights, monkeypatch, capsys):
    mine = write_image(tmp_path / "stdin.png", 7)
    os.utime(mine, (1e9, 1e9))
    before = mine.read_bytes()
    monkeypatch.setattr("sys.stdin", Pipe(encoded(1)))
    assert run(toy_weights, "-", "--out", tmp_path) == 1
    assert "stdin.png is there already" in "".join(capsys.readouterr()) and mine.read_bytes() == before


def test_several_processes_cannot_share_a_standard_input(toy_weights, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"write the paths into a list\.txt"):
        run(toy_weights, "-")


def test_one_picture_that_is_named_twice(tmp_path, toy_weights, monkeypatch):
    photo = write_image(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert run(toy_weights, photo, "a.png", "./a.png", "--out", tmp_path / "out") == 0
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["a.png"]
