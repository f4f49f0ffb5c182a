"""Paths in one buffer and names made when asked for, against lists of Python objects."""

import json
import os
import pickle
import random
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from dataset.read import identity
from dataset.read.listfile import Images, Names, is_plain, read_list, repeated
from tests.three_pictures import build, fails

pytestmark = pytest.mark.fast


def random_pairs(root: Path, seed: int) -> list[tuple[str, str | None]]:
    """Pairs below and beside the root, of few names, so that stems and paths collide, no image twice."""
    rng = random.Random(seed)

    def path() -> str:
        folder = rng.choice([root, root / "a", root / "a" / "é", root.parent, Path("/elsewhere"), root / "b c"])
        return str(
            folder / rng.choice(["x", "y", "x_3", "é", "..", ".hidden", "two.dots", "C:z", "n" * 200])
        ) + rng.choice([".png", ".jpg"])

    pairs = {path(): rng.choice([None, path()]) for _ in range(60)}
    return list(pairs.items())[:40]


def write(file: Path, pairs: list[tuple[str, str | None]], root: Path, seed: int) -> Path:
    """The list of pairs, some paths relative, with blank lines."""
    rng = random.Random(seed)

    def field(path: str) -> str:
        path = path.removeprefix(f"{root}/") if rng.random() < 0.8 else path
        return f'"{path}"' if " " in path or rng.random() < 0.1 else path

    lines = [rng.choice(["\t", " ", "  "]).join(field(path) for path in pair if path) for pair in pairs]
    file.write_text("".join(line + rng.choice(["\n", " \r\n", "\n\n"]) for line in lines), encoding="utf-8")
    return file


def slow_names(paths: list[str], root: Path) -> list[str]:
    """The rule as it is told: the stem; else the path below the root; else with the number, until all differ."""
    from dataset.read.listfile import _UNSAFE, MAX_STEM_BYTES

    def below(path: str) -> Path:
        relative = Path(os.path.relpath(path, root))
        return relative if ".." not in relative.parts else Path(os.path.abspath(path)).relative_to("/")

    def harmless(name: str, index: int) -> str:
        parts = [_UNSAFE.sub("_", part).encode()[:MAX_STEM_BYTES].decode("utf-8", "ignore") for part in name.split("/")]
        return name if "/".join(parts) == name else f"{'/'.join(part or '_' for part in parts)}_{index}"

    stems = [Path(path).stem for path in paths]
    count = Counter(stems)
    names = [
        below(path).with_suffix("").as_posix() if count[stem] > 1 else stem
        for path, stem in zip(paths, stems, strict=True)
    ]
    names = [harmless(name, i) for i, name in enumerate(names)]
    while len(set(names)) < len(names):
        count = Counter(names)
        names = [f"{name}_{i}" if count[name] > 1 else name for i, name in enumerate(names)]
    return names


@pytest.mark.parametrize("seed", range(20))
def test_pairs_and_names_are_those_of_a_list(tmp_path, seed):
    wanted = random_pairs(tmp_path, seed)
    count = len(wanted)
    pairs = read_list(write(tmp_path / "list.txt", wanted, tmp_path, seed), tmp_path, False)
    assert len(pairs) == count and list(pairs) == wanted and pairs[3:9] == wanted[3:9] and pairs[-1] == wanted[-1]
    assert pairs.unlabelled == sum(label is None for _, label in wanted)
    assert list(pickle.loads(pickle.dumps(pairs))) == wanted
    for index in (count, -count - 1):
        with pytest.raises(IndexError):
            pairs[index]
    names = Names(Images(pairs), tmp_path)
    assert list(names) == slow_names([image for image, _ in wanted], tmp_path)
    assert names[-1] == names[count - 1] and len(set(names)) == count


def test_a_pair_takes_the_bytes_of_its_line(tmp_path):
    lines = [f"image/{i:07}.png label/{i:07}.png\n" for i in range(1000)]
    (tmp_path / "list.txt").write_text("".join(lines))
    pairs = read_list(tmp_path / "list.txt", tmp_path, True)
    assert pairs.plain and len(pairs.text) == 1000 * 36 and pairs.starts.nbytes == 8 * 1000
    assert pairs[7] == (f"{tmp_path}/image/0000007.png", f"{tmp_path}/label/0000007.png")
    assert pairs.where(999) == f"{tmp_path}/list.txt:1000"


@pytest.mark.parametrize("text", ['"a b"', "a\\b", "./a", "x ../a", "a/./b", "a//b", "é", "a\0", "a\x1fb", "x\t.a"])
def test_odd_lines_are_not_plain(text):
    assert is_plain(b"a.png b/c-d_e.png\n/f/g.png h\r\n") and not is_plain(f"a.png b.png\n{text}\n".encode())


def test_no_file_of_a_list_is_looked_at(tmp_path, monkeypatch):
    """Neither with plain paths nor with others, until a pair is asked for."""
    (tmp_path / "list.txt").write_text("a.png b.png\né.png x\\y.png\n", encoding="utf-8")
    looked: list[str] = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *a, **k: (looked.append(str(path)), stat(path, *a, **k))[1])
    pairs = read_list(tmp_path / "list.txt", tmp_path, True)
    assert pairs[0][0].endswith("a.png") and set(looked) == {str(tmp_path / "list.txt")}


@pytest.mark.parametrize(
    "again", ["image/a.png", "./image/a.png", "image//a.png", "{root}/image/a.png", "image\\a.png", '"image/a.png"']
)
def test_an_image_that_stands_twice_is_found_in_any_spelling(tree, again):
    line = again.format(root=tree)
    (tree / "train.txt").write_text(f"image/b.png label/b.png\n\nimage/a.png label/a.png\n{line} label/b.png\n")
    fails(["train.txt:4: the picture ", "a.png stands on line 3 already"], build, tree)


def test_repeated_is_that_of_a_counter():
    for seed in range(50):
        codes = np.random.default_rng(seed).integers(-20, 20, seed)
        count = Counter(codes.tolist())
        assert repeated(codes).tolist() == [count[code] > 1 for code in codes.tolist()]


def test_missing_files_name_list_and_line_when_they_are_read(tree):
    with open(tree / "train.txt", "a") as file:
        file.write("image/d.png label/a.png\n\nimage/a.png/x label/b.png\nimage label/b.png\n")
    dataset = build(tree)
    for index, text in (
        (3, ":4: image/d.png does not exist"),
        (4, ":6: image/a.png/x does not"),
        (5, ":7: image is no"),
    ):
        error = dataset.samples.missing(index)
        assert str(error).startswith(f"{tree}/train.txt{text}")
        fails(f"train.txt{text}", dataset.__getitem__, index, error=FileNotFoundError)
    assert all(dataset.samples.missing(index) is None for index in range(3))


@pytest.mark.parametrize("count", [1, 3, 5000])
def test_the_digest_of_a_list_is_that_of_all_its_names(tree, count):
    """As runs have it in their checkpoints; a moved root has the same."""
    names = [[f"image/{i}.png", f"label/{i % 7}é.png"] for i in range(count)]
    names[0][0] = "/elsewhere/a.png"
    (tree / "train.txt").write_text("".join(f"{a} {b}\n" for a, b in names), encoding="utf-8")
    assert identity.facts(build(tree))["list"] == sha256(json.dumps(names).encode()).hexdigest()


def test_a_long_list_asks_for_the_files_of_some_samples(tree, monkeypatch):
    first = identity.fingerprint(build(tree))
    os.utime(tree / "label/b.png", ns=(1, 1))
    assert identity.fingerprint(build(tree)) != first
    monkeypatch.setattr(identity, "ASKED", 2)  # of three: the first and the last
    first = identity.fingerprint(build(tree))
    os.utime(tree / "label/b.png", ns=(2, 2))
    assert identity.fingerprint(build(tree)) == first
    os.utime(tree / "image/c.png", ns=(2, 2))
    assert identity.fingerprint(build(tree)) != first
