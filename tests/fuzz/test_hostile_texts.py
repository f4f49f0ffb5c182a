"""List files, YAML and names that are no such thing, or too much of it."""

import os
import zipfile

import cv2
import numpy as np
import pytest
import torch
import yaml

from dataset.base import SegDataset
from dataset.read.listfile import Names, read_list
from tests.fuzz import hostile
from util.config.check import check_config
from util.config.load import load, saved_config
from util.config.yamltext import ConfigError, parse_yaml
from util.report.result import PredictionWriter, write_submission


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"a.png a.png\0\n", ":1: holds a NUL byte"),
        (bytes(range(128, 256)) * 9, ":1: not UTF-8"),
        (b"a.png a.png\n" + b"\xff\n", ":2: not UTF-8"),
        ("a.png a.png\n".encode("utf-16"), "not UTF-8 text, but UTF-16"),
        (b"x " * 10_000_000, ":1: a line of 20,000,000 bytes"),
        (b"a.png a.png a.png\n", ":1: 3 fields"),
        (b'"a.png a.png\n', ":1: the quote"),
        (b"a.png '\n", ":1: the quote"),
        (b"# a comment\n", ":1: 3 fields"),
        (b"a.png a.png\r\na.png a.png\r\n", ":2: the picture a.png stands on line 1"),
        (b"\n" * 1_000_000, "empty"),
        (b"", "empty"),
    ],
)
def test_a_hostile_list_is_refused_by_line(tmp_path, content, reason):
    (tmp_path / "a.png").touch()
    path = tmp_path / "train.txt"
    path.write_bytes(content)
    with hostile.bounded(), pytest.raises((ValueError, OSError)) as error:
        read_list(path, tmp_path, True)
    assert str(error.value).startswith(str(path)) and reason in str(error.value)


@pytest.mark.parametrize(
    "line, reason",
    [("/dev/zero a.png", "/dev/zero is no ordinary file"), ("a.png ../none.png", "../none.png does not")],
)
def test_a_file_that_is_none_is_told_by_line_when_it_is_read(tmp_path, line, reason):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((2, 2), np.uint8))
    (tmp_path / "train.txt").write_text(f"{line}\n")
    with hostile.bounded(), pytest.raises(FileNotFoundError) as error:
        SegDataset(tmp_path, classes=("a", "b"))[0]
    assert str(error.value).startswith(f"{tmp_path}/train.txt:1: {reason}")


def test_a_list_of_gigabytes_is_refused_unread(tmp_path):
    path = tmp_path / "train.txt"
    for start, reason in ((b"a.png b.png\n" * 1000, ": 1,099,511,627,776 bytes"), (b"", ":1: holds a NUL byte")):
        path.write_bytes(start)
        os.truncate(path, 1 << 40)  # sparse
        with hostile.bounded(), pytest.raises(ValueError) as error:
            read_list(path, tmp_path, True)
        assert str(error.value).startswith(f"{path}{reason}")


def test_pipes_and_devices_are_no_lists(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", "/dev/zero"):
        with pytest.raises(ValueError, match="pipe, socket or device"):
            read_list(path, tmp_path, True)


def test_byte_order_mark_line_ends_and_foreign_folders_are_fine(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("in/a.png", "b.png"):
        (tmp_path / name).touch()
    path = tmp_path / "train.txt"
    path.write_bytes(b"\xef\xbb\xbfa.png ../b.png\r\n" + f"{tmp_path / 'b.png'} a.png".encode())
    first, second = read_list(path, tmp_path / "in", True)
    assert os.path.samefile(first[1], tmp_path / "b.png") and os.path.samefile(second[0], tmp_path / "b.png")


# --- outputs ---

NAMES = (
    "..png",
    "...png",
    "....png",
    "a\\..\\..\\b.png",
    "C:x.png",
    "new\nline.png",
    "x" * 250 + ".a",
    "\x7f.png",
    "12:30.png",
    "sp ace.png",
    "é" * 120 + ".png",
    "-rf.png",
    "~.png",
    "$(id).png",
    "CON.png",
)


def test_outputs_stay_in_the_result_folder(tmp_path):
    root = tmp_path / "data"
    for folder in ("one", "two", "../outside"):
        (root / folder).mkdir(parents=True)
    paths = [str(root / folder / name) for folder in ("one", "two", "../outside") for name in NAMES]
    for path in paths:
        cv2.imencode(".png", np.zeros((2, 2), np.uint8))[1].tofile(path)
    os.symlink(paths[0], root / "link.png")
    names = Names([*paths, str(root / "link.png")], root)
    assert len(set(names)) == len(paths) + 1
    assert "one/12:30" in names and "one/sp ace" in names, "ordinary names stay"
    result = tmp_path / "run" / "result"
    write = PredictionWriter(result, np.zeros((2, 3), np.uint8))
    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    for name in names:
        write({"name": name}, np.zeros((2, 2), np.uint8))
    new = {file for file in tmp_path.rglob("*") if file.is_file()} - before
    assert len(new) == 2 * len(names)
    assert all(file.resolve().is_relative_to(result.resolve()) for file in new)
    write_submission(result / "submission.zip", ((name, np.zeros((2, 2), np.uint8)) for name in names))
    with zipfile.ZipFile(result / "submission.zip") as archive:
        for entry in archive.namelist():
            parts = entry.replace("\\", "/").split("/")
            assert not {"", ".", ".."} & set(parts) and ":\\" not in entry and "\n" not in entry


def test_names_are_unique_where_a_number_would_meet_another_name(tmp_path):
    names = Names([str(tmp_path / name) for name in ("x.png", "x.jpg", "x_0.png", "x_1.png")], tmp_path)
    assert len(set(names)) == 4


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "..", "", "..\\x", "C:\\x", "a\0b"])
def test_a_name_that_leads_out_is_refused(tmp_path, name):
    write = PredictionWriter(tmp_path / "result", np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match="leads out of the result folder"):
        write({"name": name}, np.zeros((2, 2), np.uint8))
    assert not list(tmp_path.rglob("*.png"))


# --- YAML ---


@pytest.mark.parametrize(
    "text, reason",
    [
        ("data: &a {x: 1}\ny: *a", ":2: an alias"),
        ("data: &a [*a]", ":1: an alias"),
        ("data: " + "[" * 100_000, "not valid YAML"),
        ("x: !!python/object/apply:os.system [id]", "the tag"),
        ("x: !!binary 'ä'", "the tag"),
        ("x: !!int abc", "not valid YAML"),
        ("x: !!int [1]", "not valid YAML"),
        ("x: !!bool maybe", "not valid YAML"),
        ("x: " + "9" * 5000, "not valid YAML"),
        ("x: 010", "'010' can be read in two ways"),
        ("x: 1:0", "'1:0' can be read in two ways"),
        ("x: a\0b", "not valid YAML"),
        ("x: 1\nx: 2", ":2: key 'x' was given before, on line 1"),
        ("1: 1\n'1': 2", ":2: key '1' was given before"),
        ("1.5: 1", "a key is a word or a whole number"),
        ("? [a]\n: 1", "a key is a word"),
        ("x:\n\t- 1", ":2: not valid YAML"),
        ("@", "not valid YAML"),
        ("*a", "an alias"),
        ("---\na: 1\n---\nb: 1", "not valid YAML"),
        ("- 1", "expected sections"),
        ("", "expected sections"),
        ("5", "expected sections"),
        ("base: hostile.yaml", "base: more than 2 levels"),
        ("base: /dev/zero", "pipe or device"),
        ("base: huge.yaml", "bytes; more than 524,288 are not read"),
        ("base: [3]", "base: expected the path"),
        ("#" * 600_000, "bytes; more than 524,288"),
    ],
)
def test_hostile_yaml_is_refused_by_name(tmp_path, text, reason):
    path = tmp_path / "hostile.yaml"
    path.write_text(text, encoding="utf-8")
    with open(tmp_path / "huge.yaml", "wb") as file:
        file.truncate(1 << 40)
    with hostile.bounded(), pytest.raises(ConfigError) as error:
        load(path)
    assert "hostile.yaml" in str(error.value) and reason in str(error.value)


def test_other_encodings_pipes_and_folders_are_no_yaml(tmp_path):
    (tmp_path / "utf16.yaml").write_bytes("data: 1".encode("utf-16"))
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("utf16.yaml", "folder.yaml", "pipe.yaml", "none.yaml"):
        with pytest.raises(ConfigError, match=name):
            load(tmp_path / name)


def test_many_classes_are_read():
    classes = {"classes": [f"class {i}" for i in range(255)], "label_map": {i: i % 255 for i in range(20_000)}}
    assert parse_yaml(yaml.safe_dump(classes), "x") == classes


@pytest.mark.parametrize(
    "pair",
    [
        "." * 100 + "=1",
        "a." * 5000 + "a=1",
        "x",
        "=",
        "x=[" + "[" * 10_000,
        "train.epochs=" + "9" * 5000,
        "train.epochs=.nan",
        "train=&a [*a]",
        "data=\udcff",
    ],
)
def test_hostile_overrides_are_refused(pair):
    with (
        hostile.bounded(),
        pytest.raises(ConfigError, match=r"expected section\.key=value|cut off|an alias|not valid YAML|x\.yaml"),
    ):
        saved_config(hostile.EXPERIMENT, "x.yaml", [pair])


def test_hundreds_of_mistakes_are_told_shortly():
    raw = {**hostile.EXPERIMENT, **{f"wrong{i}": "x" * 1000 for i in range(500)}}
    with pytest.raises(ConfigError) as error:
        check_config(raw, "x.yaml")
    assert len(str(error.value)) < 10_000 and "and 480 more mistakes" in str(error.value)


def test_a_data_set_with_a_hostile_name_trains_as_any_other(tmp_path):
    for name in ("..png", "a b.png"):
        (tmp_path / name).write_bytes(hostile.png(hostile.scene(1)))
    (tmp_path / "train.txt").write_text('..png "a b.png"\n')
    sample = SegDataset(tmp_path, classes=("a", "b", "c"))[0]
    assert torch.equal(sample["label"], torch.from_numpy(hostile.scene(1)))
