"""The check of a long list, by processes, against that of a short one, by threads."""

import numpy as np
import pytest

from dataset import build_dataset
from dataset.prepare.check import check_dataset, sample
from dataset.read import DataError
from tests.three_pictures import picture, save


def test_processes_find_what_threads_find(tmp_path, monkeypatch):
    """Labels of two maps, as Cityscapes has them; then with mistakes of all kinds."""
    rng, lines = np.random.default_rng(0), []
    for i in range(150):
        name = f"{i}_labelTrainIds.png" if i % 3 else f"{i}_labelIds.png"
        save(tmp_path / f"{i}.png", picture(rng, 4 + i % 5, 6))
        save(tmp_path / name, rng.integers(0, 19 if i % 3 else 34, (4 + i % 5, 6)).astype(np.uint8))
        lines.append(f"{i}.png {name}\n")
    (tmp_path / "train.txt").write_text("".join(lines))
    threads = check_dataset(build_dataset("cityscapes", tmp_path))
    monkeypatch.setattr(sample, "WORTH_PROCESSES", 100)
    monkeypatch.setattr(sample, "map_threads", lambda *_: pytest.fail("by threads"))
    assert check_dataset(build_dataset("cityscapes", tmp_path), workers=2) == threads
    for i in (3, 77, 101, 149):
        save(tmp_path / lines[i].split()[1], np.full((4 + i % 5, 6), 77, np.uint8))
    (tmp_path / "5.png").unlink()
    (tmp_path / "6.png").write_bytes(b"no picture")
    with pytest.raises(DataError) as processes:
        check_dataset(build_dataset("cityscapes", tmp_path), workers=2)
    monkeypatch.undo()
    with pytest.raises(DataError) as by_threads:
        check_dataset(build_dataset("cityscapes", tmp_path))
    assert str(processes.value) == str(by_threads.value) and "train.txt:6: 5.png does not exist" in str(processes.value)
    assert "6 of 150 samples" in str(processes.value)
