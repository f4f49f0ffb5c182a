"""Comparisons against cases whose answer is known."""

import csv
import json

import numpy as np
import pytest
import yaml

from tool import compare as command
from util import UserError
from util.report.compare import compare, interval, read_result, resample
from util.report.per_image import ImageScore, write_per_image

pytestmark = pytest.mark.fast


def result(folder, matrices, config=None, classes=("a", "b"), names=None):
    """Writes a result of images with these confusion matrices."""
    folder.mkdir(parents=True)
    scores = []
    for index, matrix in enumerate(np.asarray(matrices)):
        cells = np.flatnonzero(matrix)
        name = names[index] if names else f"n{index}"
        scores.append(ImageScore(name, cells.astype(np.uint16), matrix.ravel()[cells].astype(np.uint32), 0.5, 0.5))
    write_per_image(folder, scores, classes)
    total = np.asarray(matrices).sum(0)
    union = total.sum(0) + total.sum(1) - total.diagonal()
    iou = [float(hit / whole) if whole else None for hit, whole in zip(total.diagonal(), union, strict=True)]
    metrics = {"mIoU": float(np.mean([value for value in iou if value is not None])), "mAcc": 0.5, "allAcc": 0.5}
    metrics |= {"num_images": len(matrices), "protocol": {"name": "whole"}}
    metrics["classes"] = [{"name": name, "iou": value} for name, value in zip(classes, iou, strict=True)]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def coin(heads: int, images: int = 20) -> list[list[list[int]]]:
    """Images of 10 pixels of class a, all right in the first `heads` of them, all taken for b in the others."""
    return [[[10, 0], [0, 0]] if index < heads else [[0, 10], [0, 0]] for index in range(images)]


def test_the_interval_of_a_fair_coin_is_that_of_the_binomial_distribution(tmp_path):
    """IoU of b is 0 as soon as b is predicted, that of a is the share of heads, a binomial number of 20.

    Its quantiles at 2.5 and 97.5 % are 6 and 14: P(X <= 5) = 0.0207, P(X <= 6) = 0.0577. So mIoU is 0.15 to 0.35.
    """
    found = compare([read_result(result(tmp_path / "a", coin(10)))])
    assert found["runs"][0]["mIoU"] == 0.25
    assert found["runs"][0]["interval"] == pytest.approx([0.15, 0.35])


def test_a_difference_that_is_the_same_in_every_image_is_certain(tmp_path):
    """Paired: each result alone varies with the images, their difference does not."""
    rng = np.random.default_rng(0)
    share = rng.integers(20, 80, 30)
    base = [[[s, 100 - s], [0, 100]] for s in share]
    one, other = np.array(base), np.array(base)
    other[:, 0, 0] += 10  # ten more pixels of a are right in each image
    other[:, 0, 1] -= 10
    found = compare([read_result(result(tmp_path / name, m)) for name, m in (("one", one), ("other", other))])
    alone, difference = found["runs"][0]["interval"], found["differences"][0]
    # IoU of a moves by 10 / 100 exactly, that of b by a little more or less with the images.
    assert difference["apart"] and difference["interval"][0] < difference["mIoU"] < difference["interval"][1]
    changed = found["classes"][0]
    assert changed["interval"] == [pytest.approx([0.1, 0.1])] and changed["apart"] == [True]
    assert (alone[1] - alone[0]) > 5 * (difference["interval"][1] - difference["interval"][0])
    same = compare([read_result(tmp_path / "one"), read_result(result(tmp_path / "copy", one))])
    assert same["differences"][0]["interval"] == [0, 0] and not same["differences"][0]["apart"]
    assert all(row["interval"] == [[0, 0]] and row["apart"] == [False] for row in same["classes"])


def test_a_class_that_a_resample_may_lack_has_no_interval(tmp_path):
    matrices = np.array(coin(10))
    matrices[0] = [[5, 0], [2, 3]]  # class b is labelled in one image, and never predicted elsewhere
    matrices[1:, 0] = [9, 0]
    one, other = (read_result(result(tmp_path / name, matrices)) for name in ("one", "other"))
    assert [row["interval"] for row in compare([one, other])["classes"]] == [[[0, 0]], [None]]


def test_resamples_equal_drawing_images_one_by_one():
    rng = np.random.default_rng(5)
    hits = rng.integers(0, 50, (12, 3))
    unions = hits + rng.integers(1, 50, (12, 3))
    unions[:, 2] = hits[:, 2] = 0
    unions[0, 2] = 7  # class c occurs in one image: it is in some resamples only
    found = resample([(hits, unions)], 4000)[:, 0]
    slow = []
    for _ in range(4000):
        drawn = rng.integers(0, 12, 12)
        iou = [hits[drawn, c].sum() / u for c in range(3) if (u := unions[drawn, c].sum())]
        slow.append(np.mean(iou))
    assert interval(found) == pytest.approx(interval(np.array(slow)), abs=0.01)


def test_images_in_another_order_are_paired_by_name(tmp_path):
    rng = np.random.default_rng(1)
    matrices = rng.integers(1, 50, (6, 2, 2))
    result(tmp_path / "a", matrices)
    result(tmp_path / "b", matrices[::-1], names=[f"n{index}" for index in range(5, -1, -1)])
    found = compare([read_result(tmp_path / "a"), read_result(tmp_path / "b")])
    assert found["differences"][0]["interval"] == [0, 0] and found["images"] == []


def test_the_paired_interval_is_that_of_scipy():
    """Percentile bootstrap of the difference of two mIoU over the same images, drawn by scipy."""
    stats = pytest.importorskip("scipy.stats", reason="pip install scipy")
    rng = np.random.default_rng(7)
    unions = rng.integers(50, 200, (2, 25, 3))
    hits = (unions * rng.uniform(0.4, 0.9, (1, 25, 3)) * rng.uniform(0.9, 1.0, (2, 25, 3))).astype(int)

    def difference(index, axis):
        one, other = ((hits[run][index].sum(-2) / unions[run][index].sum(-2)).mean(-1) for run in (0, 1))
        return other - one

    settings = {"n_resamples": 20_000, "confidence_level": 0.95, "method": "percentile", "rng": rng}
    bounds = stats.bootstrap((np.arange(25),), difference, vectorized=True, axis=-1, **settings).confidence_interval
    scores = resample([(hits[run], unions[run]) for run in (0, 1)], 20_000)
    width = bounds.high - bounds.low
    assert interval(scores[:, 1] - scores[:, 0]) == pytest.approx([bounds.low, bounds.high], abs=0.03 * width)


def test_what_is_not_the_same_images_has_no_paired_interval(tmp_path):
    a = read_result(result(tmp_path / "a", coin(3)))
    few = read_result(result(tmp_path / "few", coin(3, 10)))
    labels = read_result(result(tmp_path / "labels", [[[10, 0], [0, 1]]] * 20))
    for other, reason in ((few, "20 and 10, 10 in common"), (labels, "other labels")):
        found = compare([a, other])
        assert found["differences"][0]["interval"] is None and reason in found["notes"][0]
        assert found["runs"][1]["interval"] == compare([other])["runs"][0]["interval"] is not None
        assert found["images"] == []
    same = read_result(result(tmp_path / "same", coin(12)))
    found = compare([a, few, same])  # which is still paired
    assert found["differences"][1] == compare([a, same])["differences"][0] and found["differences"][1]["apart"]


def test_a_single_image_has_no_interval(tmp_path):
    """Each of its resamples is itself, so that any difference would look certain."""
    one, other = (read_result(result(tmp_path / name, coin(heads, 1))) for name, heads in (("one", 0), ("other", 1)))
    found = compare([one, other])
    assert found["differences"][0] == {"name": other.name, "mIoU": 1.0, "interval": None, "apart": None}
    assert [run["interval"] for run in found["runs"]] == [None, None] and "single image" in found["notes"][0]


def test_another_or_an_unknown_protocol_is_told(tmp_path):
    results = []
    for name, protocol in (("a", {"flip": False}), ("b", {"flip": True}), ("c", None)):
        folder = result(tmp_path / name, coin(3))
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps(metrics | {"protocol": protocol}))
        results.append(read_result(folder))
    a, b, c = (each.name for each in results)
    notes = compare(results)["notes"]
    assert notes == [f"{b}: another flip (True) than {a} (False)", notes[1]]
    assert notes[1].startswith(c) and "not known" in notes[1]


def test_keys_and_seeds(tmp_path):
    for index, (lr, seed, heads) in enumerate([(0.1, 0, 10), (0.1, 1, 14), (0.2, 0, 4)]):
        config = {"optim": {"lr": lr}, "seed": seed, "loader": {"workers": index}}
        result(tmp_path / str(index), coin(heads), config)
    found = compare([read_result(tmp_path / str(index)) for index in range(3)])
    assert [(row["key"], row["values"]) for row in found["keys"]] == [
        ("loader.workers", [0, 1, 2]),
        ("optim.lr", [0.1, 0.1, 0.2]),
        ("seed", [0, 1, 0]),
    ]
    (group,) = found["seeds"]
    assert group["seeds"] == [0, 1] and group["mean"] == pytest.approx(0.3)
    assert group["deviation"] == pytest.approx(0.05 * 2**0.5)  # 0.25 and 0.35
    assert found["images"][0]["mIoU"] in ([0, 0.5, 0], [0.5, 0.5, 0], [1, 1, 0])
    assert found["images"][0]["spread"] == 1


def test_there_is_no_mean_over_seeds_of_other_images_or_of_one_seed_twice(tmp_path):
    def read(name, heads, images, seed):
        return read_result(result(tmp_path / name, coin(heads, images), {"seed": seed, "model": {"options": {"a": 1}}}))

    whole, few = [read(f"w{seed}", 3 + seed, 20, seed) for seed in (0, 1)], read("few", 3, 10, 2)
    (group,) = compare([*whole, few])["seeds"]
    assert group["runs"] == [each.name for each in whole]
    again = read("again", 9, 20, 1)
    found = compare([*whole, again])
    assert found["seeds"] == [] and any("seed 1 comes more than once" in note for note in found["notes"])
    other = read_result(result(tmp_path / "o", coin(3), {"seed": 0, "model": {"options": {"a": 2}}}))
    assert compare([whole[0], other])["keys"] == [{"key": "model.options.a", "values": [1, 2]}]


def test_damaged_or_mixed_results_are_refused_by_name(tmp_path):
    folder = result(tmp_path / "a", coin(3))
    with pytest.raises(UserError, match="of other classes: class 1 is 'b' and 'c'"):
        compare([read_result(folder), read_result(result(tmp_path / "b", coin(3), classes=("a", "c")))])
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {"mIoU": 0.3}))
    with pytest.raises(UserError, match="not of one evaluation"):
        read_result(folder)
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match=r"metrics\.json: damaged"):
        read_result(folder)
    with pytest.raises(FileNotFoundError, match="no result"):
        read_result(tmp_path)
    run = tmp_path / "run"
    result(run / "result" / "val-whole", coin(3))
    assert read_result(run).folder == run / "result" / "val-whole"
    result(run / "result" / "val-semseg", coin(3))
    with pytest.raises(UserError, match="2 results; name one: .*val-semseg, .*val-whole"):
        read_result(run)


def test_the_command_writes_all_forms(tmp_path, capsys):
    names = ["=x<script>", *(f"n{index}" for index in range(1, 20))]
    result(tmp_path / "a", coin(0), {"optim": {"lr": 0.1}}, names=names)
    result(tmp_path / "b\x1b[2J", coin(9), {"optim": {"lr": 0.2}}, names=names)
    files = [str(tmp_path / f"c.{form}") for form in ("json", "csv", "html")]
    places = [str(tmp_path / "a"), str(tmp_path / "b\x1b[2J")]
    assert command.main([*places, "--json", files[0], "--csv", files[1], "--html", files[2]]) == 0
    shown = capsys.readouterr().out
    assert "+22.50 *" in shown and "+45.00 *" in shown and "optim.lr" in shown and "\x1b" not in shown
    assert json.loads((tmp_path / "c.json").read_text())["differences"][0]["mIoU"] == pytest.approx(0.225)
    with open(files[1], newline="") as file:
        rows = list(csv.DictReader(file))
    page, found = (tmp_path / "c.html").read_text(), json.loads((tmp_path / "c.json").read_text())
    assert [row["IoU a"] for row in rows] == ["0.0", "0.45"]
    for row, each in zip(rows, found["runs"], strict=True):  # all forms say the same
        assert [float(row["low"]), float(row["high"])] == each["interval"]
        assert " .. ".join(f"{100 * bound:.2f}" for bound in each["interval"]) in page
    assert [float(rows[1][f"difference {end}"]) for end in ("low", "high")] == found["differences"][0]["interval"]
    assert "&lt;script&gt;" in page and "=x<script>" not in page
    assert "http" not in page
