"""util/score/evaluate.py and util/report/result.py: scores over shards, and every file of an evaluation."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dataset.base import distinct_palette
from tests.conftest import free_port
from tests.paths import ROOT
from util.report.result import PredictionWriter, metrics, score_predictions, table, write_results, write_submission
from util.score.evaluate import WAITING, Predictor, Timing, compare, evaluate, shard
from util.score.metric import ConfusionMatrix

NAMES = ("road", "sky", "tree", "boat")
COLORS = distinct_palette(4)


class RedIsTheClass(nn.Module):
    """Reads the class out of the red channel, which holds 20 times its number."""

    def forward(self, x):
        red = x[:, :1] * 20
        return {"out": -((red - 20 * torch.arange(4).view(1, 4, 1, 1)) ** 2)}


def make_predictor():
    return Predictor(RedIsTheClass(), 4, mean=(0, 0, 0), std=(20, 20, 20))


def make_samples(number=7, labelled=True):
    """Pictures of unequal sizes whose predictions are known, and labels that differ here and there."""
    samples = []
    for index in range(number):
        rng = np.random.default_rng(index)
        size = 9 + index, 15 - index
        predicted = rng.integers(0, 3, size)
        label = np.where(rng.random(size) < 0.7, predicted, rng.integers(0, 3, size)).astype(np.uint8)
        label[rng.random(size) < 0.1] = 255
        image = torch.from_numpy(np.stack([predicted * 20] * 3).astype(np.uint8))
        sample = {"image": image, "name": f"town/frame.{index}", "truth": predicted.astype(np.uint8)}
        samples.append(sample | ({"label": torch.from_numpy(label)} if labelled else {}))
    return samples


def expected_matrix(samples):
    matrix = np.zeros((4, 4), np.int64)
    for sample in samples:
        for truth, predicted in zip(sample["label"].numpy().ravel(), sample["truth"].ravel(), strict=True):
            if truth != 255:
                matrix[truth, predicted] += 1
    return matrix


def test_every_picture_is_counted_once():
    samples, confusion = make_samples(), ConfusionMatrix(4)
    scores, timing = evaluate(make_predictor(), samples, confusion)
    matrix = expected_matrix(samples)
    assert np.array_equal(confusion.matrix.numpy(), matrix)
    assert scores.allAcc == pytest.approx(np.trace(matrix) / matrix.sum())
    assert scores.absent == (3,)
    assert timing.num_images == 7
    assert 0 < timing.seconds_per_image <= timing.total_seconds


@pytest.mark.parametrize("world", [1, 2, 3, 10])
def test_shards_add_up_to_the_whole(world):
    samples = make_samples()
    shards = [shard(range(len(samples)), rank, world) for rank in range(world)]
    assert sorted(index for indices in shards for index in indices) == list(range(len(samples)))
    total = np.zeros((4, 4), np.int64)
    for indices in shards:
        confusion = ConfusionMatrix(4)
        evaluate(make_predictor(), [samples[index] for index in indices], confusion)
        total += confusion.matrix.numpy()
    assert np.array_equal(total, expected_matrix(samples))


PROCESS = """
import sys
import torch
from tests.util.score.test_evaluate import ConfusionMatrix, evaluate, make_predictor, make_samples, shard
from util import dist
torch.set_num_threads(1)
dist.init()
samples, confusion = make_samples(), ConfusionMatrix(4)
own = [samples[index] for index in shard(range(7), dist.rank(), dist.world_size())]
scores, timing = evaluate(make_predictor(), own, confusion)
torch.save((confusion.matrix, scores.mIoU, timing.num_images), f"{sys.argv[1]}/{dist.rank()}.pth")
dist.close()
"""


def test_two_processes_agree_with_one(tmp_path):
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NGPU": "0"}
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    running = [
        subprocess.Popen(
            command, cwd=ROOT, env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(ROOT)}
        )
        for rank in "01"
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    samples, confusion = make_samples(), ConfusionMatrix(4)
    scores, _ = evaluate(make_predictor(), samples, confusion)
    for rank in "01":
        matrix, miou, num_images = torch.load(tmp_path / f"{rank}.pth")
        assert torch.equal(matrix, confusion.matrix)
        assert (miou, num_images) == (scores.mIoU, 7)


def test_without_labels_predictions_are_made_and_not_scored():
    seen = {}
    scores, timing = evaluate(
        make_predictor(),
        make_samples(labelled=False),
        on_prediction=lambda sample, prediction: seen.update({sample["name"]: prediction}),
    )
    assert scores is None
    assert timing.num_images == len(seen) == 7
    for sample in make_samples():
        assert np.array_equal(seen[sample["name"]], sample["truth"])


def test_two_ways_are_compared_on_the_same_pictures():
    class SkyIsTree(RedIsTheClass):
        def forward(self, x):
            return {"out": super().forward(x)["out"][:, [0, 2, 1, 3]]}

    samples = make_samples()
    other = Predictor(SkyIsTree(), 4, mean=(0, 0, 0), std=(20, 20, 20))
    found = compare(make_predictor(), other, samples, 4)
    truth = np.concatenate([sample["truth"].ravel() for sample in samples])
    alone = evaluate(make_predictor(), samples, ConfusionMatrix(4))[0].mIoU
    swapped = evaluate(other, samples, ConfusionMatrix(4))[0].mIoU
    assert found == {
        "num_images": 7,
        "mIoU": alone,
        "mIoU_exact": swapped,
        "mIoU_difference": alone - swapped,
        "agreement": pytest.approx((truth == 0).mean()),
    }
    assert compare(make_predictor(), other, [], 4)["agreement"] is None


def test_no_pictures_at_all():
    scores, timing = evaluate(make_predictor(), [], ConfusionMatrix(4))
    assert scores.absent == (0, 1, 2, 3)
    assert (timing.num_images, timing.seconds_per_image) == (0, 0.0)


def test_wrong_labels_name_the_sample():
    for size, value, message in [
        ((3, 3), 0, r".*\(10, 14\), label of shape \(3, 3\)"),
        ((10, 14), 34, r"label values \[34\] are no class"),
    ]:
        samples = make_samples(2)
        samples[1]["label"] = torch.full(size, value, dtype=torch.uint8)
        with pytest.raises(ValueError, match=f"sample town/frame.1: {message}"):
            evaluate(make_predictor(), samples, ConfusionMatrix(4))


def test_what_has_no_label_is_predicted_and_not_scored():
    samples, seen, alone, both = make_samples(3), [], ConfusionMatrix(4), ConfusionMatrix(4)
    evaluate(make_predictor(), [samples[0], samples[2]], alone)
    del samples[1]["label"]
    _, timing = evaluate(make_predictor(), samples, both, lambda sample, _: seen.append(sample["name"]))
    assert torch.equal(both.matrix, alone.matrix) and timing.num_images == 3 and len(seen) == 3


def test_error_of_a_writer_reaches_the_caller():
    def fail(sample, prediction):
        raise OSError(f"disk full at {sample['name']}")

    for number in (1, 7):
        with pytest.raises(OSError, match="disk full at town/frame.0"):
            evaluate(make_predictor(), make_samples(number), on_prediction=fail)


def test_slow_writers_hold_the_network_back():
    gate, predicted = threading.Event(), []

    def samples():
        for sample in make_samples(1) * (WAITING + 20):
            predicted.append(sample["name"])
            if len(predicted) == WAITING + 1:  # these fit; the next one has to wait for the gate
                threading.Timer(0.2, check).start()
            yield sample

    counts = []

    def check():
        counts.append(len(predicted))
        gate.set()

    evaluate(make_predictor(), samples(), on_prediction=lambda sample, prediction: gate.wait(10))
    assert counts[0] <= WAITING + 1
    assert len(predicted) == WAITING + 20


def test_writer_writes_ids_and_colours_complete(tmp_path):
    samples = make_samples()
    evaluate(make_predictor(), samples, on_prediction=PredictionWriter(tmp_path, COLORS))
    for sample in samples:
        gray = cv2.imread(str(tmp_path / "gray" / f"{sample['name']}.png"), cv2.IMREAD_UNCHANGED)
        color = cv2.imread(str(tmp_path / "color" / f"{sample['name']}.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(gray, sample["truth"])
        assert np.array_equal(color[..., ::-1], COLORS[sample["truth"]])
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".png"}


def test_writer_writes_what_it_is_asked_for(tmp_path):
    PredictionWriter(tmp_path, COLORS, color=False)({"name": "a"}, np.zeros((4, 5), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["gray"]


@pytest.mark.parametrize("name", ["../a", "/a", "b/../../a", ""])
def test_names_stay_inside_the_result_folder(name, tmp_path):
    with pytest.raises(ValueError, match="leads out"):
        PredictionWriter(tmp_path, COLORS)({"name": name}, np.zeros((4, 5), np.uint8))


@pytest.fixture
def predictions(tmp_path):
    evaluate(make_predictor(), make_samples(), on_prediction=PredictionWriter(tmp_path, COLORS))
    return tmp_path


def named_labels(samples):
    return [{"name": sample["name"], "label": sample["label"]} for sample in samples]


def test_predictions_on_disk_score_like_the_network(predictions):
    samples, confusion = make_samples(), ConfusionMatrix(4)
    assert score_predictions(predictions, named_labels(samples), confusion) == 7
    assert np.array_equal(confusion.matrix.numpy(), expected_matrix(samples))


def test_wrong_predictions_on_disk_name_their_file(predictions):
    samples = named_labels(make_samples())
    path = predictions / "gray" / "town" / "frame.3.png"
    good = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)

    def score(error, message):
        with pytest.raises(error, match=rf"frame\.3\.png{message}"):
            score_predictions(predictions, samples, ConfusionMatrix(4))

    cv2.imwrite(str(path), good[:, :5])
    score(ValueError, " is 12 x 5, its label 12 x 12")
    cv2.imwrite(str(path), np.full_like(good, 7))
    score(ValueError, r": prediction values \[7\] are no class: expected 0..3")
    cv2.imwrite(str(path), cv2.merge([good] * 3))
    score(ValueError, r" is uint8 \(12, 12, 3\): expected one channel")
    cv2.imwrite(str(path), good.astype(np.uint16))
    score(ValueError, " is uint16")
    path.write_bytes(b"not a picture")
    score(ValueError, " is no readable picture")
    path.unlink()
    score(FileNotFoundError, "; run the evaluation")


@pytest.fixture
def outcome():
    """Scores in which boat is absent and tree is only predicted."""
    confusion = ConfusionMatrix(4)
    label = torch.tensor([[0, 0, 0, 1, 255]])
    confusion.update(torch.tensor([[0, 0, 2, 1, 3]]), label)
    return confusion.result(), confusion


def test_metrics_json_is_what_the_documentation_says(outcome, tmp_path):
    scores, confusion = outcome
    checkpoint = tmp_path / "best.pth"
    checkpoint.write_bytes(b"weights")
    protocol = make_predictor().describe()
    folder, timing = tmp_path / "a" / "b", Timing(1, 0.25, 2.0)
    text = write_results(folder, scores, confusion, NAMES, timing, protocol, checkpoint)
    content = json.loads((folder / "metrics.json").read_text())
    assert content["mIoU"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert content["mAcc"] == pytest.approx((2 / 3 + 1) / 2)
    assert content["allAcc"] == pytest.approx(3 / 4)
    assert content["classes"] == [
        {"name": "road", "iou": pytest.approx(2 / 3), "acc": pytest.approx(2 / 3), "pixels": 3},
        {"name": "sky", "iou": 1.0, "acc": 1.0, "pixels": 1},
        {"name": "tree", "iou": 0.0, "acc": None, "pixels": 0},
        {"name": "boat", "iou": None, "acc": None, "pixels": 0},
    ]
    assert content["absent"] == ["boat"]
    assert content["num_images"] == 1
    assert content["protocol"] == protocol
    assert content["checkpoint"] == {"path": str(checkpoint), "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert content["seconds_per_image"] == 0.25
    assert {"python", "torch", "numpy"} <= set(content["versions"])
    assert (folder / "table.txt").read_text() == text + "\n"


def test_csv_files_hold_the_same_numbers(outcome, tmp_path):
    scores, confusion = outcome
    write_results(tmp_path, scores, confusion, NAMES, Timing(1, 0.25, 2.0), None, None)
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(NAMES)
    assert float(rows[0]["iou"]) == pytest.approx(2 / 3)
    assert (rows[2]["iou"], rows[2]["acc"], rows[3]["iou"]) == ("0.0", "", "")
    with open(tmp_path / "confusion.csv", newline="") as file:
        matrix = [[int(value) for value in row[1:]] for row in list(csv.reader(file))[1:]]
    assert matrix == confusion.matrix.tolist()
    assert cv2.imread(str(tmp_path / "confusion.png")) is not None


def test_scores_of_existing_predictions_have_no_protocol_time_or_checkpoint(outcome):
    content = metrics(outcome[0], NAMES, Timing(1, float("nan"), 2.0), None, None)
    assert (content["protocol"], content["checkpoint"], content["seconds_per_image"]) == (None, None, None)


def test_table_shows_percent_and_what_is_left_out(outcome):
    lines = table(outcome[0], NAMES).splitlines()
    cells = {line.split()[0]: line.split()[1:] for line in lines if len(line.split()) == 4}
    assert cells["road"] == ["66.67", "66.67", "3"]
    assert cells["tree"] == ["0.00", "-", "0"]
    assert cells["boat"] == ["-", "-", "0"]
    assert cells["mean"] == ["55.56", "83.33", "4"]
    assert "pixel accuracy 75.00" in lines
    assert lines[-2].endswith("never labelled, with an IoU of 0 in the mean: tree")
    assert lines[-1].endswith("left out of the means: boat")


def test_the_table_of_many_or_wide_names():
    """Of 20 absent classes twelve are named; letters of two columns keep the columns straight."""
    confusion = ConfusionMatrix(21)
    confusion.update(torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.uint8))
    lines = table(confusion.result(), ["道路", *(f"c{index}" for index in range(20))]).splitlines()
    assert lines[2] == "道路   100.00  100.00              4" and lines[0] == "class     IoU     acc         pixels"
    assert lines[-1].endswith("means: c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11 and 8 more")


def test_submission_holds_the_ids_and_is_reproducible(tmp_path):
    items = [(f"berlin_{index}", np.full((6, 8), 7 + index, np.uint8)) for index in range(3)]
    assert write_submission(tmp_path / "new" / "a.zip", items) == 3
    write_submission(tmp_path / "b.zip", items)
    with zipfile.ZipFile(tmp_path / "new" / "a.zip") as archive:
        assert archive.namelist() == [f"berlin_{index}.png" for index in range(3)]
        for name, ids in items:
            data = np.frombuffer(archive.read(f"{name}.png"), np.uint8)
            assert np.array_equal(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), ids)
    assert (tmp_path / "b.zip").read_bytes() == (tmp_path / "new" / "a.zip").read_bytes()


def test_submission_of_colours_and_of_16_bits(tmp_path):
    colors = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    deep = np.full((6, 8), 1000, np.uint16)
    write_submission(tmp_path / "a.zip", [("colors", colors), ("deep", deep)])
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        for name, values in (("colors", colors), ("deep", deep)):
            assert np.array_equal(np.asarray(Image.open(archive.open(f"{name}.png"))), values)


def test_submission_that_fails_leaves_the_older_one(tmp_path):
    path = tmp_path / "a.zip"
    ids = np.zeros((6, 8), np.uint8)
    write_submission(path, [("a", ids)])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="a comes twice"):
        write_submission(path, [("a", ids), ("a", ids)])
    with pytest.raises(ValueError, match="int64"):
        write_submission(path, [("a", ids.astype(np.int64))])
    with pytest.raises(ValueError, match="uint8 or uint16"):
        write_submission(path, [("a", np.zeros((6, 8, 2), np.uint8))])
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zip"]
