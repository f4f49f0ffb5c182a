"""The page of a comparison shows the images on which results disagree, from what evaluations keep."""

import base64
import re
import shutil

import cv2
import numpy as np
import pytest

from tests.conftest import COLORS, make_data, make_experiment
from tool import compare, test
from util.report.disagreement import FIRST, NEITHER, OTHER, disagreement, pictures


@pytest.mark.fast
def test_who_is_right_where_they_differ():
    truth = np.array([[0, 0, 0, 0, 0, 255]], np.uint8)
    first = np.array([[0, 0, 1, 1, 1, 0]], np.uint8)
    other = np.array([[0, 1, 0, 2, 1, 1]], np.uint8)  # equal, first, other, none, equally wrong, ignored
    assert disagreement(truth, [first, other]).tolist() == [[0, 1, 2, 3, 0, 0]]
    third = np.array([[0, 0, 0, 0, 0, 0]], np.uint8)
    assert disagreement(truth, [first, other, third]).tolist() == [[0, 1, 2, 2, 2, 0]]


def decoded(uri: str) -> np.ndarray:
    content = base64.b64decode(uri.partition("base64,")[2])
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)


@pytest.mark.fast
def test_the_pictures_of_an_image():
    """Fields of 32 x 32 pixels, so that what JPEG does to their borders is far from their middle."""
    fields = [[0, 0, 0, 255], [0, 1, 1, 0], [1, 0, 2, 1]]
    truth, first, other = (np.kron(np.array([row], np.uint8), np.ones((32, 32), np.uint8)) for row in fields)
    found = pictures(np.full((32, 128, 3), 100, np.uint8), truth, [first, other], np.array(COLORS, np.uint8))
    assert list(found) == ["image", "truth", "1", "2", "difference"]
    assert np.array_equal(decoded(found["1"])[16, 48], COLORS[1]) and np.array_equal(
        decoded(found["2"])[5, 70], COLORS[2]
    )
    difference = decoded(found["difference"])
    for place, color in zip((16, 48, 80, 112), (FIRST, OTHER, NEITHER, (0, 0, 0)), strict=True):
        assert np.abs(difference[16, place] - color).max() < 25


@pytest.fixture
def results(tmp_path):
    """Two scored results of five images, without a network: all right, and wrong in a corner of two images."""
    data = make_data(tmp_path / "data", train=4, val=5)
    runs = []
    for name in ("one", "other"):
        gray = tmp_path / name / "result" / "val-whole" / "gray"
        gray.mkdir(parents=True)
        for index in range(5):
            label = cv2.imread(str(data / "label" / f"val_{index:03}.png"), cv2.IMREAD_UNCHANGED)
            label[label == 255] = 0
            if name == "other" and index == 3:
                label[:32, :48] = 2
            if name == "other" and index == 1:
                label[:8, 20:28] = 2
            cv2.imwrite(str(gray / f"val_{index:03}.png"), label)
        experiment = make_experiment(tmp_path, data, test={"has_prediction": True})
        assert test.main(["--config", str(experiment), "--exp", str(tmp_path / name)]) == 0
        runs.append(str(tmp_path / name))
    return data, runs


def test_the_page_shows_them_or_says_why_not(results, tmp_path, capsys):
    data, runs = results
    page = tmp_path / "page.html"

    def shown(*arguments):
        assert compare.main([*runs, "--html", str(page), *arguments]) == 0
        text = page.read_text(encoding="utf-8")
        return re.findall(r'<img src="(data:[^"]+)" alt="([^"]+)"', text), text, capsys.readouterr().err

    found, text, told = shown()
    assert [title for _, title in found] == ["image", "truth", "1", "2", "difference"] * 2
    assert not told and "No pictures" not in text
    assert text.index("<h3>val_003</h3>") < text.index("<h3>val_001</h3>")  # what differs most comes first
    difference = decoded(found[4][0])
    assert difference.shape == (64, 96, 3) and np.abs(difference[16, 24] - FIRST).max() < 25  # all else is equal
    assert all(difference[y, x].std() < 12 for y, x in ((50, 24), (50, 80)))
    # The data are elsewhere now
    data.rename(tmp_path / "moved")
    found, text, told = shown()
    assert not found and "No pictures: the data of" in text and "--root" in told
    assert len(shown("--root", str(tmp_path / "moved"))[0]) == 10
    # One prediction is of another size, then none are left
    cv2.imwrite(f"{runs[1]}/result/val-whole/gray/val_001.png", np.zeros((5, 5), np.uint8))
    found, text, told = shown("--root", str(tmp_path / "moved"))
    assert len(found) == 5 and "Pictures are missing" in text and "val_001.png is no prediction" in told
    shutil.rmtree(f"{runs[1]}/result/val-whole/gray")
    found, text, told = shown("--root", str(tmp_path / "moved"))
    assert not found and f"No pictures: no predictions in {runs[1]} (gray/)" in text and "save_gray" in told
