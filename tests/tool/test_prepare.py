"""`tool.prepare` on generated trees of the official layouts."""

import numpy as np
import pytest
from PIL import Image

from dataset import build_dataset, dataset_class
from dataset.prepare.check import check_dataset
from tool.prepare import list_text, main


def save(root, path, value=None):
    """A picture, or a label full of `value`."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    shape, fill = ((8, 12, 3), 100) if value is None else ((8, 12), value)
    if isinstance(value, tuple):
        shape, fill = (8, 12, 3), value
    array = np.empty(shape, np.uint8)
    array[:] = fill
    Image.fromarray(array).save(root / path)


def cityscapes(root, kind="labelIds"):
    for split, city in (("train", "aachen"), ("train", "ulm"), ("val", "munster"), ("test", "bonn")):
        for i in range(2):
            stem = f"{city}_00000{i}_000019"
            save(root, f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png")
            if kind is not None:
                value = 26 if kind == "labelIds" else 13
                save(root, f"gtFine/{split}/{city}/{stem}_gtFine_{kind}.png", value)


def ade20k(root):
    for split in ("training", "validation"):
        for i in range(3):
            save(root, f"images/{split}/ADE_{i:08}.jpg")
            save(root, f"annotations/{split}/ADE_{i:08}.png", 150)


def rugd(root):
    for sequence in ("creek", "trail", "trail-3", "trail-5", "park-8"):
        save(root, f"RUGD_frames-with-annotations/{sequence}/{sequence}_00001.png")
        save(root, f"RUGD_annotations/{sequence}/{sequence}_00001.png", (108, 64, 20))


def camvid(root):
    for split in ("train", "val"):
        for i in range(2):
            save(root, f"{split}/{i}.png")
            save(root, f"{split}annot/{i}.png", 8)


TREES = {"cityscapes": cityscapes, "ade20k": ade20k, "rugd": rugd, "camvid": camvid}
EXPECTED = {
    "cityscapes": {"train": 4, "val": 2, "test": 2},
    "ade20k": {"train": 3, "val": 3},
    "rugd": {"train": 2, "val": 2, "test": 1},
    "camvid": {"train": 2, "val": 2},
}
CLASS_DRAWN = {"cityscapes": "car", "ade20k": "flag", "rugd": "dirt", "camvid": "car"}


@pytest.mark.parametrize("name", TREES)
def test_lists_are_written_and_read(tmp_path, capsys, name):
    TREES[name](tmp_path)
    assert main([name, "--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for split, count in EXPECTED[name].items():
        dataset = build_dataset(name, tmp_path, split=split)
        assert len(dataset) == count and f"{count} pictures" in printed
        label = dataset[0].get("label")
        if label is not None:
            assert {dataset.classes[i] for i in label.unique()} == {CLASS_DRAWN[name]}
            assert check_dataset(dataset).labelled == count
    expected = dataset_class(name).layout.splits["train"].count
    assert f"the complete data set has {expected}" in printed
    assert main([name, "--root", str(tmp_path)]) == 0, "a second time nothing changes"
    assert "unchanged" in capsys.readouterr().out


def test_cityscapes_prefers_train_ids_where_they_are_complete(tmp_path):
    cityscapes(tmp_path)
    cityscapes(tmp_path, "labelTrainIds")
    assert main(["cityscapes", "--root", str(tmp_path)]) == 0
    assert (tmp_path / "train.txt").read_text().count("labelTrainIds") == 4
    next(tmp_path.glob("gtFine/train/*/*labelTrainIds.png")).unlink()
    assert main(["cityscapes", "--root", str(tmp_path), "--force"]) == 0
    assert (tmp_path / "train.txt").read_text().count("labelIds") == 4
    assert all(" " not in line for line in (tmp_path / "test.txt").read_text().splitlines())


def test_rugd_split_has_every_sequence_once():
    from dataset.rugd import SEQUENCES

    names = [name for split in SEQUENCES.values() for name in split]
    assert len(names) == len(set(names)) == 18


@pytest.mark.parametrize("name", TREES)
def test_missing_folders_are_explained(tmp_path, capsys, name):
    assert main([name, "--root", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert "none: no such folder" in error and dataset_class(name).layout.source in error
    assert main([name, "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "train: no picture matches" in error and "licence" in error and error.count("\n") == 1
    assert "Traceback" not in error


def test_missing_labels_are_named(tmp_path, capsys):
    cityscapes(tmp_path, kind=None)
    assert main(["cityscapes", "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "train: 4 of 4 pictures have no label" in error
    assert "gtFine/train/aachen/aachen_000000_000019_gtFine_labelTrainIds.png" in error
    assert "nor gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png" in error


def test_lists_elsewhere(tmp_path, capsys):
    camvid(tmp_path / "data")
    out = tmp_path / "lists"
    assert main(["camvid", "--root", str(tmp_path / "data"), "--out", str(out)]) == 0
    assert not (tmp_path / "data/train.txt").exists() and "data.train_list" in capsys.readouterr().out
    assert len(build_dataset("camvid", tmp_path / "data", list_file=out / "train.txt")) == 2


def test_an_own_list_is_kept_without_force(tmp_path, capsys):
    camvid(tmp_path)
    own = "train/1.png trainannot/1.png\n"
    (tmp_path / "train.txt").write_text(own)
    assert main(["camvid", "--root", str(tmp_path)]) == 2
    assert "train.txt exists with other lines (1, where the folders give 2)" in capsys.readouterr().err
    assert (tmp_path / "train.txt").read_text() == own
    assert main(["camvid", "--root", str(tmp_path), "--force"]) == 0
    assert len(build_dataset("camvid", tmp_path)) == 2


def test_a_faulty_list_leaves_all_lists_alone(tmp_path):
    camvid(tmp_path)
    (tmp_path / "val.txt").write_text("val/1.png valannot/1.png\n")
    assert main(["camvid", "--root", str(tmp_path)]) == 2
    assert not (tmp_path / "train.txt").exists()


def test_other_mistakes(tmp_path, capsys):
    assert main(["cityscape", "--root", str(tmp_path)]) == 2
    assert "did you mean 'cityscapes'" in capsys.readouterr().err
    assert main(["custom", "--root", str(tmp_path)]) == 2
    assert "no official layout" in capsys.readouterr().err
    assert main(["street", "--root", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "leave --out away" in capsys.readouterr().err


def test_street_is_drawn_by_its_own_prepare(tmp_path, monkeypatch, capsys):
    from dataset import street

    draw = street.prepare
    monkeypatch.setattr(street, "prepare", lambda root: draw(root, (32, 48), train=3, val=2))
    root = tmp_path / "street"
    assert main(["street", "--root", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "train 3 pictures" in printed and "val   2 pictures" in printed
    assert check_dataset(build_dataset("street", root)).labelled == 3
    assert main(["street", "--root", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_paths_with_spaces_survive_the_list(tmp_path):
    root = tmp_path / "x"
    pairs = [("a b/c.png", "d/e f.png"), ("g.png", None), ('say "hi" x.png', "'q.png")]
    for path in (part for pair in pairs for part in pair if part):
        save(root, path)
    (root / "test.txt").write_text(list_text(pairs))
    samples = build_dataset("custom", root, split="test", classes=["x"]).samples
    assert samples == [tuple(str(root / part) if part else None for part in pair) for pair in pairs]
