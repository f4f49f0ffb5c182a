"""Paths in one buffer and names made when asked for, against lists of Python objects."""

import pickle
import random
from collections import Counter
from pathlib import Path

import pytest

from dataset.read.listfile import Images, Names, Pairs

pytestmark = pytest.mark.fast


def random_pairs(root: Path, seed: int) -> list[tuple[str, str | None]]:
    """Pairs below and beside the root, of few names, so that stems and paths collide."""
    rng = random.Random(seed)

    def path() -> str:
        folder = rng.choice([root, root / "a", root / "a" / "é", root.parent, Path("/elsewhere"), Path("relative")])
        return str(
            folder / rng.choice(["x", "y", "x_3", "é", "..", ".hidden", "two.dots", "C:z", "n" * 200])
        ) + rng.choice([".png", ".jpg"])

    return [(path(), rng.choice([None, path()])) for _ in range(40)]


def slow_names(paths: list[str], root: Path) -> list[str]:
    """The rule as it is told: the stem; else the path below the root; else with the number, until all differ."""
    from dataset.read.listfile import _below, _harmless

    stems = [Path(path).stem for path in paths]
    count = Counter(stems)
    names = [
        _below(path, root).with_suffix("").as_posix() if count[stem] > 1 else stem
        for path, stem in zip(paths, stems, strict=True)
    ]
    names = [_harmless(name, i) for i, name in enumerate(names)]
    while len(set(names)) < len(names):
        count = Counter(names)
        names = [f"{name}_{i}" if count[name] > 1 else name for i, name in enumerate(names)]
    return names


@pytest.mark.parametrize("seed", range(20))
def test_pairs_and_names_are_those_of_a_list(tmp_path, seed):
    wanted = random_pairs(tmp_path, seed)
    pairs = Pairs(iter(wanted), tmp_path)
    assert len(pairs) == 40 and list(pairs) == wanted and pairs[3:9] == wanted[3:9] and pairs[-1] == wanted[-1]
    assert list(pickle.loads(pickle.dumps(pairs))) == wanted
    for index in (40, -41):
        with pytest.raises(IndexError):
            pairs[index]
    names = Names(Images(pairs), tmp_path)
    assert list(names) == slow_names([image for image, _ in wanted], tmp_path)
    assert names[-1] == names[39] and len(set(names)) == 40


def test_a_pair_takes_the_bytes_of_its_paths_below_the_root():
    lines = ((f"/data/set/image/{i:07}.png", f"/data/set/label/{i:07}.png") for i in range(1000))
    pairs = Pairs(lines, Path("/data/set"))
    assert len(pairs.text) == 1000 * (1 + 17 + 1 + 1 + 17) and pairs.ends.nbytes == 8 * 1001
