"""`tool.prepare` on generated trees of the official layouts."""

import os
import shutil
import time
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dataset import DATASETS, build_dataset, dataset_class
from dataset.prepare.check import check_dataset
from dataset.prepare.layout import Archive
from dataset.read.image import read_label
from tests.official_trees import TREES, camvid, cityscapes, coco, idd, save, voc, voc_aug
from tool.prepare import list_text
from tool.prepare import main as prepare
from tool.shared.cli import command


def main(argv):
    """The exit status of the command."""
    with pytest.raises(SystemExit) as ended:
        command(lambda: prepare(argv))
    return ended.value.code


@pytest.mark.parametrize("name", TREES)
def test_lists_are_written_and_read(tmp_path, capsys, name):
    tree, counts, drawn = TREES[name]
    tree(tmp_path)
    assert main([name, "--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for split, count in counts.items():
        dataset = build_dataset(name, tmp_path, split=split)
        assert len(dataset) == count and f"{count} pictures" in printed
        label = dataset[0].get("label")
        if label is not None and drawn:
            assert {dataset.classes[i] for i in label.unique()} == {drawn}
            assert check_dataset(dataset).labelled == count
    expected = dataset_class(name).layout.splits["train"].count
    assert f"the complete data set has {expected}" in printed
    assert main([name, "--root", str(tmp_path)]) == 0, "a second time nothing changes"
    assert "unchanged" in capsys.readouterr().out


def test_every_data_set_has_a_tree():
    assert set(TREES) == set(DATASETS) - {"custom", "street"}


def test_splits_of_one_folder_share_no_picture(tmp_path):
    for name in ("camvid_full", "kitti", "voc_aug"):
        root = tmp_path / name
        TREES[name][0](root)
        assert main([name, "--root", str(root)]) == 0
        images = [image for split in ("train", "val") for image, _ in build_dataset(name, root, split=split).samples]
        assert len(images) == len(set(images))


def test_variants_of_a_data_set_have_lists_of_their_own(tmp_path):
    cityscapes(tmp_path)
    TREES["cityscapes_coarse"][0](tmp_path)
    assert main(["cityscapes", "--root", str(tmp_path)]) == 0
    assert main(["cityscapes_coarse", "--root", str(tmp_path)]) == 0
    assert len(build_dataset("cityscapes", tmp_path)) == 4
    assert len(build_dataset("cityscapes_coarse", tmp_path)) == 1


def test_hidden_files_are_no_pictures(tmp_path):
    camvid(tmp_path)
    for path in ("train/._0.png", "trainannot/._0.png", "train/.hidden.png"):
        (tmp_path / path).write_bytes(b"Mac OS X")
    assert main(["camvid", "--root", str(tmp_path)]) == 0
    assert len(build_dataset("camvid", tmp_path)) == 2


def test_outlines_are_drawn_where_there_are_no_label_pictures(tmp_path):
    cityscapes(tmp_path, "polygons")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["cityscapes", "--root", str(tmp_path)]) == 0
    sample = build_dataset("cityscapes", tmp_path)[0]
    assert sample["label"].unique().tolist() == [13], (
        "a group is its class; a licence plate and the deleted are not drawn"
    )
    assert all(path.stat().st_mtime_ns == time for path, time in before.items()), "the originals are left alone"


def test_voc_augmented_takes_the_official_label_and_no_val_picture(tmp_path):
    voc_aug(tmp_path)
    assert main(["voc_aug", "--root", str(tmp_path)]) == 0
    dataset = build_dataset("voc_aug", tmp_path)
    assert [os.path.basename(image)[:11] for image, _ in dataset.samples] == [
        "2007_000032",
        "2007_000039",
        "2008_000001",
    ]
    assert {int(dataset[i]["label"].max()) for i in range(3)} == {15}, "SBD's own label of 2007_000032 holds 3"


def test_voc_augmented_from_the_folder_of_labels(tmp_path):
    voc(tmp_path)
    for name in ("2007_000032", "2007_000039", "2007_000033", "2008_000001"):
        save(tmp_path, f"VOCdevkit/VOC2012/SegmentationClassAug/{name}.png", 2)
    save(tmp_path, "VOCdevkit/VOC2012/JPEGImages/2008_000001.jpg")
    assert main(["voc_aug", "--root", str(tmp_path)]) == 0
    assert len(build_dataset("voc_aug", tmp_path)) == 3 and not (tmp_path / "prepared").exists()
    assert len(build_dataset("voc_aug", tmp_path, split="val")) == 1


def test_coco_is_drawn_as_the_reference_training_has_it(tmp_path, capsys):
    coco(tmp_path)
    assert main(["coco", "--root", str(tmp_path)]) == 0
    assert "1 pictures are left out by the rules" in capsys.readouterr().out
    label = build_dataset("coco", tmp_path)[0]["label"].numpy()
    expected = np.zeros((40, 120), int)
    expected[:, :60], expected[:, :10] = 15, 255
    assert (label == expected).all()
    assert build_dataset("coco", tmp_path, split="val")[1]["label"].max() == 0, "val keeps pictures of background alone"


def test_conversion_goes_on_where_it_stopped(tmp_path, capsys):
    idd(tmp_path)
    out = tmp_path / "out"
    command_line = ["idd", "--root", str(tmp_path), "--out", str(out)]
    assert main(command_line) == 0
    labels = sorted((out / "labels").rglob("*.png"))
    assert len(labels) == 3 and not (tmp_path / "prepared").exists()
    times = [path.stat().st_mtime_ns for path in labels]
    labels[0].unlink()
    assert main(command_line) == 0
    assert [path.stat().st_mtime_ns for path in labels][1:] == times[1:] and labels[0].is_file()
    source = next(tmp_path.glob("gtFine/val/*/*.json"))
    source.write_text(source.read_text().replace("cargroup", "bus"))
    later = time.time() + 10
    os.utime(source, (later, later))
    assert main(command_line) == 0
    val = next(path for path in labels if "/val/" in str(path))
    assert (read_label(val) == 11).all(), "a source that has changed is converted again"


def test_a_full_disk_is_told_by_the_size_of_the_first_labels(tmp_path, capsys, monkeypatch):
    """Of three labels two are made and measured: 4,096 bytes each on the disk."""
    idd(tmp_path)
    monkeypatch.setattr("dataset.prepare.convert.MEASURED", 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Room", "free")(4000))
    assert main(["idd", "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "prepared/idd: the rest of 2 labels needs 4,096 bytes, and 4,000 are free" in error
    assert len(list(tmp_path.glob("prepared/**/*.png"))) == 1 and not (tmp_path / "train.txt").exists()
    monkeypatch.undo()
    assert main(["idd", "--root", str(tmp_path)]) == 0, "the same command goes on"


@pytest.mark.parametrize("where", ["root", "out"])
def test_mean_and_deviation_are_measured_where_asked(tmp_path, capsys, where):
    root, out = tmp_path / "root", tmp_path / where
    camvid(root)
    options = ["--out", str(out)] if where == "out" else []
    assert main(["camvid", "--root", str(root), "--measure", *options]) == 0
    pixels = np.stack([np.array(Image.open(root / f"train/{i}.png")) for i in range(2)]).reshape(-1, 3).astype(float)
    mean, std = ([round(value, 2) for value in each.tolist()] for each in (pixels.mean(0), pixels.std(0)))
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"Measured on the 2 training pictures: data.mean={mean} data.std={std}".replace(", ", ",")


def test_a_faulty_source_is_named(tmp_path, capsys):
    idd(tmp_path)
    source = next(tmp_path.glob("gtFine/val/*/*.json"))
    source.write_text("{")
    assert main(["idd", "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(source) in error and "not a readable JSON file" in error and "Traceback" not in error
    assert not (tmp_path / "train.txt").exists(), "no list while labels are missing"


def test_what_is_missing_may_be_left_out(tmp_path, capsys):
    cityscapes(tmp_path)
    next(tmp_path.glob("gtFine/train/*/*.png")).unlink()
    for path in tmp_path.glob("leftImg8bit/val/*/*"):
        path.unlink()
    assert main(["cityscapes", "--root", str(tmp_path)]) == 2
    assert "1 of 4 pictures have no label" in capsys.readouterr().err
    assert main(["cityscapes", "--root", str(tmp_path), "--partial"]) == 0
    printed = capsys.readouterr().out
    assert "train 3 pictures" in printed and "1 pictures without a label are left out" in printed
    assert "val   absent" in printed


def test_a_download_is_unpacked_converted_and_listed(tmp_path, capsys, monkeypatch):
    """From a folder instead of a server: the same reader opens both."""
    source = tmp_path / "source"
    coco(source)
    archives = []
    for folder in ("train2017", "val2017", "annotations"):
        shutil.make_archive(str(tmp_path / folder), "zip", source, folder)
        archives.append(Archive((tmp_path / f"{folder}.zip").as_uri()))
    kind = dataset_class("coco")
    monkeypatch.setattr(kind, "layout", replace(kind.layout, downloads=tuple(archives)))
    root = tmp_path / "root"
    assert main(["coco", "--root", str(root), "--download"]) == 0
    assert "licence" in capsys.readouterr().err and len(build_dataset("coco", root)) == 1
    assert main(["coco", "--root", str(root), "--download"]) == 0
    assert "val2017.zip was unpacked before" in capsys.readouterr().err


def test_a_set_behind_a_login_says_what_to_fetch(tmp_path, capsys):
    assert main(["mapillary", "--root", str(tmp_path), "--download"]) == 2
    error = capsys.readouterr().err
    assert "cannot be fetched by a program" in error and "register there" in error and error.count("\n") == 1


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


@pytest.mark.parametrize("name", ["cityscapes", "voc"])
def test_a_folder_too_high_is_told(tmp_path, capsys, name):
    TREES[name][0](tmp_path / "data")
    assert main([name, "--root", str(tmp_path)]) == 2
    assert f"but it lies in {tmp_path}/data: give --root {tmp_path}/data\n" in capsys.readouterr().err


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
    assert "no pictures in folders called images" in capsys.readouterr().err
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
    assert list(samples) == [tuple(str(root / part) if part else None for part in pair) for pair in pairs]
