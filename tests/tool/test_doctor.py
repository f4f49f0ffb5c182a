"""The doctor: each planted mistake is found and named, and none in clean data."""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from dataset.prepare import doctor as doctor_module
from dataset.prepare.doctor import examine
from tests.conftest import make_data, make_experiment
from tests.paths import SHARED
from tests.three_pictures import build, save, save_palette
from tool import doctor
from tool.shared.data import check_labels
from util import UserError

pytestmark = pytest.mark.fast

REAL, IDD = SHARED / "real" / "data", SHARED / "data" / "idd_lite"
CLASSES = ["sky", "grass", "ball"]


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("clean"), train=8, val=4)


def label(root: Path, name: str = "train_000") -> np.ndarray:
    return cv2.imread(str(root / "label" / f"{name}.png"), cv2.IMREAD_UNCHANGED)


def each_label(root: Path, change, pattern: str = "*.png") -> None:
    for path in sorted((root / "label").glob(pattern)):
        save(path, change(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))


def add_line(root: Path, split: str, line: str) -> None:
    with open(root / f"{split}.txt", "a") as file:
        file.write(line + "\n")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


# What each plants in a clean data set; returned are changes of the experiment.


def damaged_image(root):
    cut(root / "image/train_000.png")


def damaged_label(root):
    cut(root / "label/val_001.png")


def empty_image(root):
    (root / "image/train_000.png").write_bytes(b"")


def missing_label(root):
    (root / "label/train_003.png").unlink()


def other_size(root):
    save(root / "label/train_000.png", label(root)[::2, ::2])


def lossy_label(root):
    save(root / "label/train_000.jpg", label(root))
    text = (root / "train.txt").read_text()
    (root / "train.txt").write_text(text.replace("label/train_000.png", "label/train_000.jpg"))


def float_label(root):
    np.save(root / "label/train_000.npy", label(root).astype(np.float32))
    text = (root / "train.txt").read_text()
    (root / "train.txt").write_text(text.replace("label/train_000.png", "label/train_000.npy"))


def colour_label(root):
    save(root / "label/train_000.png", np.dstack([label(root)] * 3))


def unknown_value(root):
    wrong = label(root)
    wrong[5, 5:9] = 7
    save(root / "label/train_000.png", wrong)


def shifted(root):
    each_label(root, lambda ids: np.where(ids == 255, 255, ids + 1).astype(np.uint8))


def interpolated(root):
    each_label(root, lambda ids: cv2.resize(cv2.resize(ids, (48, 32)), (96, 64)))


def class_never(root):
    each_label(root, lambda ids: np.where(ids == 2, 1, ids).astype(np.uint8))


def class_in_val_only(root):
    each_label(root, lambda ids: np.where(ids == 2, 1, ids).astype(np.uint8), "train_*.png")


def mapped_already(root):
    return {"data": {"label_map": {0: 255, 1: 255, 2: 255, 7: 0, 8: 1, 11: 2}}}


def palettes(root):
    for name, colors in (("000", [[9, 9, 0], [1, 2, 3], [50, 0, 0]]), ("001", [[9, 9, 0], [50, 0, 0], [1, 2, 3]])):
        ids = label(root, f"train_{name}") % 255
        save_palette(root / f"label/train_{name}.png", ids, colors)


def binary(root):
    each_label(root, lambda ids: np.where(ids == 2, 255, 0).astype(np.uint8))
    return {"data": {"classes": ["back", "ball"], "colors": [[0, 0, 1], [2, 0, 0]]}}


def in_both(root):
    add_line(root, "val", "image/train_002.png label/train_002.png")


def copied(root):
    for folder in ("image", "label"):
        shutil.copy(root / folder / "train_002.png", root / folder / "new.png")
    add_line(root, "val", "image/new.png label/new.png")


def saved_anew(root):
    with Image.open(root / "image/train_002.png") as image:
        image.save(root / "image/new.jpg", quality=80)
    shutil.copy(root / "label/train_002.png", root / "label/new.png")
    add_line(root, "val", "image/new.jpg label/new.png")


def twice(root):
    for folder in ("image", "label"):
        shutil.copy(root / folder / "train_002.png", root / folder / "again.png")
    add_line(root, "train", "image/again.png label/again.png")


def exchanged(root):
    text = (root / "train.txt").read_text()
    text = text.replace("label/train_001", "label/x").replace("label/train_002", "label/train_001")
    (root / "train.txt").write_text(text.replace("label/x", "label/train_002"))


def one_label_for_two(root):
    shutil.copy(root / "label/train_002.png", root / "label/both.png")
    text = (root / "train.txt").read_text().replace("label/train_001", "label/both")
    (root / "train.txt").write_text(text.replace("label/train_002", "label/both"))


def large_crop(root):
    return {"augment": {"crop": [200, 96]}}


def transparent(root):
    image = cv2.imread(str(root / "image/train_000.png"))
    save(root / "image/train_000.png", np.dstack([image, image[:, :, 0]]))


def dark_and_deep(root):
    for path in (root / "image").glob("train_*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path)).astype(np.uint16) * 16)


def one_colour(root):
    save(root / "image/train_000.png", np.full((64, 96, 3), 90, np.uint8))


def nothing_labelled(root):
    save(root / "label/train_000.png", np.full((64, 96), 255, np.uint8))


def mostly_ignored(root):
    def keep_a_strip(ids):
        ids[:, :88] = 255
        return ids

    each_label(root, keep_a_strip, "train_*.png")


def no_such_class(root):
    return {"augment": {"copy_paste_prob": 0.5, "copy_paste_classes": ["bal"]}}


ERRORS = {
    damaged_image: "1 of 8 images cannot be read\n    .*image/train_000.png: not a readable picture",
    damaged_label: "val: 1 of 4 labels cannot be read\n    .*label/val_001.png",
    empty_image: "image/train_000.png: the file is empty",
    missing_label: "label/train_003.png does not exist",
    other_size: "labels differ in size from their image\n    .*label/train_000.png .*48x32 and 96x64",
    lossy_label: "a JPEG label",
    float_label: "train_000.npy: holds float32 values",
    colour_label: r"value \(\d, \d, \d\) in 1 files: .*train_000.png",
    unknown_value: "value 7 in 1 files: .*label/train_000.png",
    shifted: r"as if shifted by one: label_map: \{1: 0, 2: 1, 3: 2\}",
    interpolated: "resized by interpolation",
    palettes: "its palette gives index 1 the colour",
    binary: r"hold only 0 and 255.*label_map: \{0: 0, 255: 1\}",
    in_both: "1 pictures are in .*train.txt and in .*val.txt .*train_002.png",
    copied: "have the pixels of images of .*train.txt under another name; .*\n    .*new.png and .*train_002.png",
    exchanged: "2 labels bear the name of another image.*\n    .*label/train_002.png stands beside .*train_001.png",
    no_such_class: "copy_paste_classes: no class 'bal'",
}
WARNINGS = {
    one_label_for_two: "2 images share their label file",
    class_never: "classes that never occur in .*train.txt: ball",
    class_in_val_only: "so no network can learn them: ball",
    mapped_already: "look as if they held training ids already",
    saved_anew: "look like ones of .*train.txt.*\n    .*new.jpg and .*train_002.png",
    twice: "1 images have the pixels of another one of the list.*\n    .*train_002.png and .*again.png",
    large_crop: r"8 of 8 images are smaller than augment.crop 200x96 .* augment.crop=\[64,96\]",
    transparent: "1 images have a band of transparency.*\n    .*train_000.png",
    dark_and_deep: "the 8 deep images use 15 of the 256 levels",
    one_colour: "1 images of one colour alone\n    .*train_000.png",
    nothing_labelled: "1 labels in which every pixel is ignored.*\n    .*train_000.png",
    mostly_ignored: "of the pixels of .*train.txt are ignored",
}


def run(tmp_path: Path, root: Path, capsys, **sections) -> tuple[int, str]:
    experiment = make_experiment(tmp_path, root, **sections)
    status = doctor.main(["--config", str(experiment), "--workers", "1", "--cache", str(tmp_path / "cache")])
    return status, capsys.readouterr().out


def test_clean_data_have_no_finding(tmp_path, clean, capsys):
    status, text = run(tmp_path, clean, capsys)
    assert status == 0 and text.endswith("0 errors, 0 warnings\n"), text


@pytest.mark.parametrize("plant", [*ERRORS, *WARNINGS], ids=lambda plant: plant.__name__)
def test_a_planted_mistake_is_found(tmp_path, clean, capsys, plant):
    data = tmp_path / "data"
    shutil.copytree(clean, data)
    status, text = run(tmp_path, data, capsys, **(plant(data) or {}))
    level, wanted = ("error", ERRORS[plant]) if plant in ERRORS else ("warning", WARNINGS[plant])
    findings = re.findall(rf"(?m)^{level}: .*(?:\n    .*)*", text)
    assert any(re.search(wanted, finding) for finding in findings), text
    assert status == (2 if plant in ERRORS else 0), text


QUICK = (other_size, lossy_label, unknown_value, shifted, interpolated, palettes, binary, in_both, exchanged)
QUICK += (one_label_for_two, class_never, class_in_val_only, mapped_already, large_crop, transparent, dark_and_deep)
QUICK += (nothing_labelled, mostly_ignored, damaged_label, empty_image)


@pytest.mark.parametrize("plant", QUICK, ids=lambda plant: plant.__name__)
def test_what_labels_headers_and_names_tell_is_said_at_every_start(tmp_path, clean, plant):
    """The same mistakes by the check before the first step, in words of its own."""
    data = tmp_path / "data"
    shutil.copytree(clean, data)
    experiment = doctor.load(make_experiment(tmp_path, data, **(plant(data) or {})), [], tmp_path / "run")
    sets = [doctor.files_of(experiment.config, split) for split in ("train", "val")]
    try:
        said = "\n".join(check_labels(experiment.config, sets, experiment.run))
    except ValueError as error:
        said = str(error)
    assert re.search(START.get(plant, ERRORS.get(plant, WARNINGS.get(plant))).partition("\n")[0], said), said


START = {
    other_size: "train_000.png: the label is 48x32 .*its picture .* 96x64",
    unknown_value: "value 7 is not in the label map",
    damaged_label: "label/val_001.png: not a readable picture",
    exchanged: "2 labels bear the name of another image of .*train_002.png stands beside .*train_001.png",
    one_label_for_two: "2 images of .*train.txt share their label file",
    transparent: "1 pictures have a band of transparency",
    dark_and_deep: "the 8 deep pictures of .* use 15 of the 256 levels",
}


def test_batches_that_shared_memory_cannot_hold_are_an_error(tmp_path, clean, monkeypatch):
    experiment = make_experiment(tmp_path, clean, loader={"workers": 1})
    config = doctor.load(experiment).config
    assert doctor.batch_bytes(config) == 1 * 2 * 4 * 48 * 64 * 4  # workers, batches ahead, pictures, crop, bands
    for free, wanted in ((98303, [True]), (98304, [])):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place, free=free: SimpleNamespace(free=free))
        assert [finding.error for finding in doctor.fits(config, {}, {}, tmp_path)] == wanted


def test_sums_are_those_of_the_arrays(clean, tmp_path):
    dataset = build(clean, classes=CLASSES)
    found = examine(dataset)
    images = np.stack([cv2.imread(image)[:, :, ::-1] for image, _ in dataset.samples]).reshape(-1, 3).astype(float)
    labels = np.stack([cv2.imread(path, cv2.IMREAD_UNCHANGED) for _, path in dataset.samples])
    assert np.allclose(found.mean, images.mean(0)) and np.allclose(found.deviation, images.std(0))
    assert found.report.pixels == tuple((labels == i).sum() for i in range(3))
    assert found.report.ignored == (labels == 255).sum() and found.sizes == [(64, 96, 8)]
    share = [(labels[(labels == i).any((1, 2))] == i).mean() for i in range(3)]  # Eigen and Fergus, section 6.3.2
    assert np.allclose(found.class_weights, np.median(share) / share)
    most = np.argsort([-(each == 2).sum() for each in labels], kind="stable")[:3]
    assert found.examples[2] == most.tolist()


def looked_at(monkeypatch) -> list[str]:
    """The names of the images that are decoded from now on."""
    names: list[str] = []
    look = doctor_module.look
    monkeypatch.setattr(
        doctor_module, "look", lambda paths, **how: names.append(Path(paths[0]).stem) or look(paths, **how)
    )
    return names


def test_what_a_file_holds_is_remembered_until_it_changes(tmp_path, clean, monkeypatch):
    data, cache = tmp_path / "data", tmp_path / "train.records"
    shutil.copytree(clean, data)
    save_palette(data / "label/train_004.png", label(data, "train_004") % 255, [[9, 9, 0], [1, 2, 3], [50, 0, 0]])
    names = looked_at(monkeypatch)
    first = examine(build(data, classes=CLASSES), cache=cache)
    assert names == [f"train_{i:03}" for i in range(8)] and not first.cached
    again = examine(build(data, classes=CLASSES), cache=cache)
    assert len(names) == 8 and again.cached
    assert (again.report, again.findings, again.sizes) == (first.report, first.findings, first.sizes)
    assert (again.digests == first.digests).all() and (again.thumbs == first.thumbs).all()
    assert (again.mean, again.deviation, again.examples) == (first.mean, first.deviation, first.examples)
    assert first.report.palette == ((0, 9, 9, 0), (1, 1, 2, 3), (2, 50, 0, 0))

    # Another label map asks for nothing, another file for itself; what cannot be read is tried again.
    merged = examine(build(data, classes=CLASSES, label_map={0: 0, 1: 0, 2: 2}), cache=cache)
    assert len(names) == 8 and merged.report.pixels[0] == sum(first.report.pixels[:2])
    unknown_value(data)
    cut(data / "image/train_002.png")
    changed = examine(build(data, classes=CLASSES), cache=cache)
    assert names[8:] == ["train_000", "train_002"] and len([each for each in changed.findings if each.error]) == 2
    assert examine(build(data, classes=CLASSES), cache=cache).findings == changed.findings and names[10:] == [
        "train_002"
    ]

    # So does one whose line is not whole, or was changed.
    lines = cache.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"[[64,96]", b"[[96,64]")
    cache.write_bytes(b"\n".join(lines)[:-9])
    assert examine(build(data, classes=CLASSES), cache=cache).findings == changed.findings
    assert names[11:] == ["train_000", "train_001", "train_002"]


def test_lines_of_files_that_are_gone_are_forgotten(tmp_path, clean):
    data, cache = tmp_path / "data", tmp_path / "train.records"
    shutil.copytree(clean, data)
    for number in range(3):
        for path in data.glob("*/train_*.png"):
            os.utime(path, ns=(number, number))
        examine(build(data, classes=CLASSES), cache=cache)
    assert len(cache.read_bytes().splitlines()) == 8


def test_the_page_is_one_file_without_addresses(tmp_path, clean):
    experiment, page = make_experiment(tmp_path, clean), tmp_path / "page.html"
    doctor.main(["--config", str(experiment), "--html", str(page), "--samples", "--cache", str(tmp_path / "cache")])
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert text.count("data:image/jpeg;base64,") == 3 * 3 + 8  # three images of each class, eight samples
    train, val = text.split('<h2 id="val">')[0], text.split('<h2 id="val">')[1].split("<h2")[0]
    assert "<th>weight</th>" in train and "weight" not in val.lower()  # a loss has no labels of val
    for part in (train, val):
        assert re.search(r"mean \[[\d., ]+\], deviation \[[\d., ]+\]", part)


def test_a_single_error_is_one_error(tmp_path, clean, capsys):
    shutil.copytree(clean, tmp_path / "data")
    (tmp_path / "data" / "train.txt").unlink()
    status, text = run(tmp_path, tmp_path / "data", capsys)
    assert status == 2 and text.endswith("1 error, 0 warnings\n") and "weight by" not in text, text


def test_two_classes_say_what_the_mean_means(tmp_path, clean, capsys):
    data = {"classes": ["back", "ball"], "colors": [[0, 0, 1], [2, 0, 0]], "label_map": {0: 0, 1: 0, 2: 1}}
    status, text = run(tmp_path, clean, capsys, data=data)
    assert status == 0 and "mean of the IoU of 'back' and of 'ball'" in text


REAL_LABELS = {
    "ade20k": "annotations/validation/ADE_val_*.png",
    "cityscapes": "**/*_label*Ids.png",
    "camvid": "val_labels/*.png",
    "kitti_road": "training/gt_image_2/*.png",
    "voc": "SegmentationClass/*.png",
    "voc_aug": "SegmentationClassAug/*.png",
    "coco_stuff": "val_label/*.png",
    "lip": "train_segmentations/*.png",
    "bdd100k": "labels/sem_seg/masks/*.png",
    "mapillary": "training/v1.2/labels/*.png",
    "rugd": "annotations/*.png",
    "idd_lite": "gtFine/*/*/*_label.png",
}


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there")
@pytest.mark.parametrize("name", REAL_LABELS)
def test_real_labels_have_no_error(tmp_path, name):
    """Each label beside a noisy image of its size, read as its data set; the pixels are those of expected.json."""
    folder = {"camvid": "camvid_color", "voc_aug": "voc"}.get(name, name)
    labels = sorted((REAL / folder).glob(REAL_LABELS[name]))
    assert labels
    rng, lines = np.random.default_rng(0), []
    for path in labels:
        with Image.open(path) as opened:
            width, height = opened.size
        save(tmp_path / f"{path.stem}.png", rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8))
        small = cv2.imread(str(tmp_path / f"{path.stem}.png"))
        cv2.imwrite(str(tmp_path / f"{path.stem}.png"), cv2.resize(small, (width, height)))
        lines.append(f"{path.stem}.png {path}\n")
    (tmp_path / "train.txt").write_text("".join(lines))
    found = examine(doctor.files_of(_config(tmp_path, name), "train"))
    assert not [finding for finding in found.findings if finding.error]
    expected = json.loads((REAL.parent / "expected.json").read_text())["data"]
    entries = [expected[f"data/{path.relative_to(REAL)}"] for path in labels]
    counts = [value for entry in entries for value in entry.values() if isinstance(value, dict)]
    if len(counts) == len(labels):
        assert sum(found.report.pixels) + found.report.ignored == sum(sum(each.values()) for each in counts)


def _config(root: Path, name: str):
    return doctor.load(
        doctor.find_experiment(name, "fcn18"), [f"data.root={root}", f"data.train_list={root}/train.txt"]
    ).config


@pytest.mark.skipif(not (IDD / "train.txt").is_file(), reason=f"{IDD} is not there")
def test_real_data_are_clean(tmp_path, capsys):
    """48 real images and labels of each list; all of them were looked at once, see docs/doctor.md."""
    for split in ("train", "val"):
        lines = (IDD / f"{split}.txt").read_text().splitlines()
        (tmp_path / f"{split}.txt").write_text("\n".join(lines[:: len(lines) // 24][:24]) + "\n")
    lists = [f"data.{split}_list={tmp_path}/{split}.txt" for split in ("train", "val")]
    status = doctor.main(["idd_lite", f"data.root={IDD}", *lists, "--workers", "1", "--cache", str(tmp_path / "cache")])
    assert status == 0 and capsys.readouterr().out.endswith("0 errors, 0 warnings\n")


def test_own_data_are_known_by_their_experiment():
    with pytest.raises(UserError, match="own are known by their experiment: .* --config FILE"):
        doctor.main(["custom", "data.root=x"])
