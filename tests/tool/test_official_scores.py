"""Our scores beside the official evaluation of Cityscapes (package cityscapesscripts)."""

import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import model
from dataset import build_dataset
from dataset.cityscapes import IDS, Cityscapes
from dataset.read.image import read_label
from dataset.read.source import read_mapped
from tests.conftest import newest_metrics
from tests.official_trees import cityscapes, save
from tests.paths import SHARED
from tests.tool.test_chain import experiment
from tool import prepare, test, train
from util.score.metric import ConfusionMatrix, Scores

official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")

REAL = SHARED / "real"
FRAME = "frankfurt_000000_000576"


def official_scores(pairs: list[tuple[Path, Path]]) -> dict:
    """What the official script gives for pairs of a prediction and a label, both in label ids."""
    settings = official.CArgs()
    settings.__dict__ |= official.args.__dict__ | {"evalInstLevelScore": False, "JSONOutput": False, "quiet": True}
    return official.evaluateImgLists([str(p) for p, _ in pairs], [str(label) for _, label in pairs], settings)


def our_scores(data: Cityscapes, pairs: list[tuple[Path, Path]]) -> Scores:
    """The same by the label map of our data set and our confusion matrix."""
    confusion = ConfusionMatrix(len(data.classes), data.ignore_label)
    for files in pairs:
        confusion.update(*(torch.from_numpy(read_mapped(str(f), data.map_for(str(f)))) for f in files))
    return confusion.result()


def agree(iou: dict[str, float], mean: float, wanted: dict) -> None:
    """To 1e-6, in each class and in the mean; what is undefined is so on both sides."""
    assert mean == pytest.approx(wanted["averageScoreClasses"], abs=1e-6)
    scored = {name: wanted["classScores"][name] for name in Cityscapes.classes}
    assert iou == pytest.approx(scored, abs=1e-6, nan_ok=True)
    others = wanted["classScores"].keys() - scored.keys()
    assert others and all(math.isnan(wanted["classScores"][name]) for name in others), "the same 19 classes count"


@pytest.fixture
def frame(tmp_path):
    """The data set of one real label, and that label."""
    label = REAL / f"data/cityscapes/gtFine/val/frankfurt/{FRAME}_gtFine_labelIds.png"
    if not label.is_file():
        pytest.skip(f"{label} is not there")
    (tmp_path / "val.txt").write_text(
        f"{REAL}/data/cityscapes/leftImg8bit/val/frankfurt/{FRAME}_leftImg8bit.png {label}\n"
    )
    return build_dataset("cityscapes", tmp_path, split="val"), label


def test_a_published_prediction_in_label_ids(frame):
    data, label = frame
    file = f"predictions/{FRAME}_hrnetocr_labelIds.png"
    pairs = [(REAL / "data/cityscapes" / file, label)]
    ours, theirs = our_scores(data, pairs), official_scores(pairs)
    agree(dict(zip(data.classes, ours.iou, strict=True)), ours.mIoU, theirs)
    expected = json.loads((REAL / "expected.json").read_text())["cityscapesscripts"][file]
    assert ours.mIoU == pytest.approx(expected["averageScoreClasses"], abs=1e-6)


def test_a_published_prediction_in_training_ids(frame, tmp_path):
    """Sent back as label ids, as `test.submission` writes them, and scored officially."""
    data, label = frame
    trained = read_mapped(
        str(REAL / f"data/cityscapes/predictions/{FRAME}_lednet_output.png"), data.map_for("x_labelTrainIds.png")
    )
    save(tmp_path, "sent.png", data.to_label_ids(trained))
    pairs = [(tmp_path / "sent.png", label)]
    ours = our_scores(data, pairs)
    agree(dict(zip(data.classes, ours.iou, strict=True)), ours.mIoU, official_scores(pairs))


def test_generated_pictures_in_the_official_layout(tmp_path):
    """All 34 ids in the labels but one class; predictions that are right at half of the pixels, and never bicycle."""
    rng, pairs = np.random.default_rng(1), []
    sent = [IDS[name] for name in Cityscapes.classes if name != "bicycle"]
    for path in labels_of_all_ids(tmp_path, rng):
        predicted = rng.choice(sent, (8, 12)).astype(np.uint8)
        label = read_label(path)
        right = np.isin(label, sent) & (rng.random(label.shape) < 0.5)
        save(tmp_path, f"sent/{path.name}", np.where(right, label, predicted))
        pairs.append((tmp_path / "sent" / path.name, path))
    (tmp_path / "val.txt").write_text(f"{pairs[0][1]} {pairs[0][1]}\n")
    data = build_dataset("cityscapes", tmp_path, split="val")
    ours = our_scores(data, pairs)
    agree(dict(zip(data.classes, ours.iou, strict=True)), ours.mIoU, official_scores(pairs))
    assert ours.mIoU > 0.1 and ours.iou[-1] == 0


def labels_of_all_ids(root: Path, rng: np.random.Generator) -> list[Path]:
    """An official tree whose labels hold every id but that of train."""
    cityscapes(root)
    labels = sorted(root.glob("gtFine/*/*/*_labelIds.png"))
    for path in labels:
        ids = rng.choice([each for each in IDS.values() if each >= 0 and each != IDS["train"]], (8, 12))
        save(root, str(path.relative_to(root)), ids.astype(np.uint8))
    return labels


def test_a_submission_of_ours_scores_officially_as_metrics_json_says(tmp_path, monkeypatch):
    monkeypatch.setitem(model.MODELS, "toy", "tests.faults.toy.Toy")
    root, run = tmp_path / "data", tmp_path / "run"
    labels = labels_of_all_ids(root, np.random.default_rng(0))
    assert prepare.main(["cityscapes", "--root", str(root)]) == 0
    arguments = ["--config", str(experiment(tmp_path, "cityscapes", root)), "--exp", str(run)]
    assert train.main(arguments) == 0
    assert test.main([*arguments, "test.split=val", "test.submission=true"]) == 0
    result = newest_metrics(run)
    with zipfile.ZipFile(result.parent / "submission.zip") as archive:
        archive.extractall(tmp_path / "sent")
    pairs = []
    for path in (path for path in labels if "/val/" in str(path)):
        sent = tmp_path / "sent" / path.name.replace("_gtFine_labelIds", "_leftImg8bit")
        pairs.append((sent, path))
    metrics = json.loads(result.read_text())
    iou = {each["name"]: math.nan if each["iou"] is None else each["iou"] for each in metrics["classes"]}
    agree(iou, metrics["mIoU"], official_scores(pairs))
