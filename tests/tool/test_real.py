"""Real checkpoints, imported and scored by the commands, have the scores of their own code."""

import json

import cv2
import numpy as np
import pytest

from tests.conftest import newest_metrics
from tests.paths import SHARED
from tool import import_weights, test

REAL, CAMVID = SHARED / "real", SHARED / "data" / "camvid"
CITYSCAPES = REAL / "data" / "cityscapes"
FRANKFURT = "frankfurt_000000_000576"
STREET = "0016E5_07959"


@pytest.fixture
def scored(tmp_path):
    """scored(file, root, list, *overrides): metrics.json, and the classes of one picture that list names."""

    def score(file: str, root, lines: list[str], *overrides: str) -> tuple[dict, np.ndarray]:
        path = REAL / "checkpoints" / file
        if not path.is_file() or not root.is_dir():
            pytest.skip(f"real checkpoints or pictures not present: no {path} or {root}")
        (tmp_path / "val.txt").write_text("\n".join(lines) + "\n")
        assert import_weights.main([str(path), "--out", str(tmp_path / "ours.pth")]) == 0
        words = [f"data.root={root}", f"data.val_list={tmp_path / 'val.txt'}", "loader.workers=0", *overrides]
        assert test.main(["--checkpoint", str(tmp_path / "ours.pth"), *words]) == 0
        result = newest_metrics(tmp_path / "ours.result").parent
        gray = sorted((result / "gray").rglob("*.png"))[0]
        return json.loads((result / "metrics.json").read_text()), cv2.imread(str(gray), cv2.IMREAD_UNCHANGED)

    return score


def expected() -> dict:
    if not (REAL / "expected.json").is_file():
        pytest.skip(f"real checkpoints not present: no {REAL / 'expected.json'}")
    return json.loads((REAL / "expected.json").read_text())


def test_cgnet_on_a_picture_of_camvid(scored):
    truth = expected()["checkpoints"]["checkpoints/cgnet/model_800.pth"][f"on {STREET}.png"]
    metrics, gray = scored("cgnet/model_800.pth", CAMVID, [f"val/{STREET}.png valannot/{STREET}.png"])
    difference = np.abs(np.bincount(gray.ravel(), minlength=11) - truth["argmax_histogram"])
    assert difference.sum() <= 1e-4 * gray.size
    assert 100 * metrics["mIoU"] == pytest.approx(truth["score"]["miou_present_classes"], abs=0.01)
    assert 100 * metrics["allAcc"] == pytest.approx(truth["score"]["pixel_accuracy"], abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "void", "miou", "accuracy"),
    [
        ("cgnet/model_800.pth", "ignore", "miou", "pixel_accuracy"),
        (
            "espnet/decoder/espnet_p_2_q_8_camvid.pth",
            "ignore",
            "miou_argmax_over_11_void_ignored",
            "pixel_accuracy_argmax_over_11",
        ),
        (
            "espnet/decoder/espnet_p_2_q_8_camvid.pth",
            "class",
            "miou_argmax_over_12_first_11_classes",
            "pixel_accuracy_argmax_over_12",
        ),
    ],
)
def test_camvid(scored, file, void, miou, accuracy):
    truth = expected()["camvid_val"][f"checkpoints/{file}"]
    lines = (CAMVID / "val.txt").read_text().splitlines() if CAMVID.is_dir() else []
    metrics, _ = scored(file, CAMVID, lines, f"test.void={void}", "test.save_color=false")
    assert metrics["num_images"] == 101
    assert 100 * metrics["mIoU"] == pytest.approx(truth[miou], abs=0.006)
    assert 100 * metrics["allAcc"] == pytest.approx(truth[accuracy], abs=0.006)
    assert metrics["protocol"]["void"] == (None if "cgnet" in file else void)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "accuracy", "miou"),
    [
        ("espnet/decoder/espnet_p_2_q_8.pth", 95.96, 65.75),
        ("espnet/encoder/espnet_p_2_q_3.pth", 92.55, 58.93),
        ("espnetv2/espnetv2_segmentation_s_1.0.pth", 95.81, 66.02),
    ],
)
def test_cityscapes(scored, file, accuracy, miou):
    """The numbers are over labelled pixels, void as a wrong prediction, and the mean over the 11 classes that occur.

    The authors take the classes at 1024x512 and enlarge them; scale 0.5 enlarges probabilities, hence the tolerance.
    """
    picture = f"leftImg8bit/val/frankfurt/{FRANKFURT}_leftImg8bit.png"
    label = f"gtFine/val/frankfurt/{FRANKFURT}_gtFine_labelIds.png"
    metrics, _ = scored(file, CITYSCAPES, [f"{picture} {label}"], "test.scales=[0.5]", "test.void=class")
    labelled = metrics["labelled_pixels"]
    ious = zip(metrics["classes"], labelled["iou"], strict=True)
    present = [iou for entry, iou in ious if entry["pixels"]]
    assert len(present) == 11
    assert 100 * np.mean(present) == pytest.approx(miou, abs=0.4)
    assert 100 * labelled["allAcc"] == pytest.approx(accuracy, abs=0.1)
