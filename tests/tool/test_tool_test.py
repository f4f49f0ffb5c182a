"""The command that scores: which checkpoint, which pictures, what it writes."""

import json
import os
import signal
import time
import zipfile

import cv2
import numpy as np
import pytest

from dataset.base import SegDataset
from dataset.cityscapes import Cityscapes
from model.inference.export import missing
from tests.conftest import make_experiment, newest_metrics
from tool import status, test, train
from tool.shared import cli
from util import checkpoint
from util.record import status as record
from util.record.files import sha256
from util.score.predict import Predictor


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """An experiment and the folder of its finished run."""
    folder = tmp_path_factory.mktemp("trained")
    experiment = make_experiment(folder, data)
    assert train.main(["--config", str(experiment), "--exp", str(folder / "run")]) == 0
    return experiment, folder / "run"


def score(experiment, run, *overrides) -> dict:
    assert test.main(["--config", str(experiment), "--exp", str(run), *overrides]) == 0
    return json.loads(newest_metrics(run / "result").read_text())


def test_a_range_of_pictures(trained):
    assert score(*trained, "test.index_start=1", "test.index_step=3")["num_images"] == 3
    assert score(*trained, "test.index_start=4", "test.index_step=9")["num_images"] == 1
    with pytest.raises(ValueError, match="index_start 5: the list has 5 pictures"):
        score(*trained, "test.index_start=5")


def test_ranges_written_one_by_one_are_scored_together(trained):
    whole = score(*trained)
    for start in range(5):
        score(*trained, f"test.index_start={start}", "test.index_step=1")
    together = score(*trained, "test.has_prediction=true")
    assert together["classes"] == whole["classes"] and together["checkpoint"] is None


def listed(run):
    """The newest evaluation of a run, as tool.status has it."""
    (row,), damaged = status.collect(run)
    assert not damaged
    return row["evaluations"][-1]


def test_the_list_of_runs_tells_of_the_evaluation(trained):
    result = score(*trained)
    row = listed(trained[1])
    assert (row["state"], row["step"], row["total"], row["mIoU"]) == ("running", 5, 5, result["mIoU"])
    record.end("finished")  # as a command does
    assert listed(trained[1])["state"] == "finished"


def test_an_evaluation_that_is_asked_to_stop_says_so_and_leaves_the_result_of_before(trained, monkeypatch, capsys):
    experiment, run = trained
    before = score(experiment, run)
    predict, pictures = Predictor.__call__, iter(range(5))

    def ending(predictor, image):
        if next(pictures) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(predictor, image)

    monkeypatch.setattr(Predictor, "__call__", ending)
    with pytest.raises(SystemExit) as end:
        cli.command(lambda: test.main(["--config", str(experiment), "--exp", str(run)]))
    assert end.value.code == 75 and "stopped by SIGTERM" in capsys.readouterr().err
    row = listed(run)
    assert (row["state"], row["step"], row["total"], row["mIoU"]) == ("stopped", 2, 5, None)
    assert json.loads(newest_metrics(run / "result").read_text()) == before


def test_last_or_best(trained):
    experiment, run = trained
    for which in ("last", "best"):
        scored = score(experiment, run, f"test.checkpoint={which}")["checkpoint"]
        assert scored["sha256"] == sha256(run / "model" / f"{which}.pth")


def test_protocols_are_reported(trained):
    protocol = score(*trained, "test.protocol=semseg", "test.base_size=96")["protocol"]
    assert protocol["window"] == [48, 64] and protocol["flip"] is True and protocol["base_size"] == 96
    assert protocol["stride_rate"] == pytest.approx(2 / 3) and protocol["name"] == "semseg"


def test_fast_windows_are_reported_with_their_difference(trained):
    exact = score(*trained)
    assert exact["protocol"]["windows"] == "exact" and "compared" not in exact["protocol"]
    fast = score(*trained, "test.windows=fast", "test.compare=3")
    compared = fast["protocol"]["compared"]
    assert fast["protocol"]["windows"] == "fast" and compared["num_images"] == 3
    assert compared["mIoU_difference"] == pytest.approx(compared["mIoU"] - compared["mIoU_exact"])
    assert 0.9 < compared["agreement"] <= 1
    everything = score(*trained, "test.windows=fast", "test.compare=99")["protocol"]["compared"]
    assert everything["num_images"] == 5 and everything["mIoU_exact"] == pytest.approx(exact["mIoU"])
    assert everything["mIoU"] == pytest.approx(fast["mIoU"])
    folded = score(*trained, "test.windows=fast", "test.compare=0", "test.optimize=fold")
    assert "compared" not in folded["protocol"] and folded["mIoU"] == pytest.approx(fast["mIoU"], abs=1e-3)


def test_reading_and_writing_overlap_with_the_network(trained, monkeypatch, tmp_path):
    """Each waits for what only comes if it runs beside the network; a worker, another process, tells by files."""
    started: list[int] = []
    late: list[str] = []

    def wait(happened, what: str) -> None:
        for _ in range(3000):  # half a minute: after that it does not run beside
            if happened():
                return
            time.sleep(0.01)
        late.append(what)

    predict, load, write = Predictor.__call__, SegDataset.__getitem__, test.PredictionWriter.__call__

    def predict_when_the_next_is_read(self, image):
        started.append(1)
        number = min(len(started) + 1, 5)
        wait(lambda: len(list(tmp_path.iterdir())) >= number, "reading while a picture is predicted")
        return predict(self, image)

    def load_and_tell(self, index):
        sample = load(self, index)
        (tmp_path / sample["name"]).touch()
        return sample

    def write_when_the_next_is_predicted(self, sample, prediction):
        number = min(int(sample["name"].removeprefix("val_")) + 2, 5)
        wait(lambda: len(started) >= number, "predicting while a picture is written")
        write(self, sample, prediction)

    monkeypatch.setattr(Predictor, "__call__", predict_when_the_next_is_read)
    monkeypatch.setattr(SegDataset, "__getitem__", load_and_tell)
    monkeypatch.setattr(test.PredictionWriter, "__call__", write_when_the_next_is_predicted)
    score(*trained, "loader.workers=1")
    assert len(started) == len(list(tmp_path.iterdir())) == 5 and late == []


def test_a_split_without_labels_is_predicted_not_scored(trained):
    experiment, run = trained
    (run / "result" / "test-whole" / "metrics.json").unlink(missing_ok=True)
    assert test.main(["--config", str(experiment), "--exp", str(run), "test.split=test"]) == 0
    assert not (run / "result" / "test-whole" / "metrics.json").exists()
    assert (run / "result" / "test-whole" / "gray" / "val_000.png").is_file()
    with pytest.raises(ValueError, match="no labels to score"):
        test.main(["--config", str(experiment), "--exp", str(run), "test.split=test", "test.has_prediction=true"])


def test_one_missing_label_does_not_silence_the_score(trained, data, capsys):
    experiment, run = trained
    lines = (data / "val.txt").read_text().splitlines()
    mixed = run / "mixed.txt"
    mixed.write_text("\n".join([*lines[:4], lines[4].split()[0]]) + "\n")
    four = score(experiment, run, "test.index_step=4")
    found = score(experiment, run, "test.split=test", f"data.test_list={mixed}")
    assert found["num_images"] == 4 and found["classes"] == four["classes"]
    assert "1 of 5 pictures have no label" in "".join(capsys.readouterr())


def test_a_submission_holds_the_ids_on_disk_or_is_refused(trained, data, tmp_path):
    experiment, run = trained
    options = ["test.split=test", "test.submission=true"]
    label_map = "data.label_map={10: 0, 20: 1, 30: 2}"
    assert test.main(["--config", str(experiment), "--exp", str(run), *options, label_map]) == 0
    result = max(run.rglob("submission.zip"), key=lambda file: file.stat().st_mtime_ns).parent
    with zipfile.ZipFile(result / "submission.zip") as archive:
        ids = cv2.imdecode(np.frombuffer(archive.read("val_000.png"), np.uint8), cv2.IMREAD_UNCHANGED)
    gray = cv2.imread(str(result / "gray" / "val_000.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(ids, 10 * (gray + 1))
    label_map = "data.label_map={10: 0, 20: 1, 30: 2, 31: 2}"
    with pytest.raises(ValueError, match="class 'ball' the values 30, 31"):
        test.main(["--config", str(experiment), "--exp", str(run), *options, label_map])


def test_the_cityscapes_zip_has_label_ids_and_the_pictures_names(tmp_path):
    """Against the ids of the official table: train ids 0..18 are these label ids."""
    official = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
    root = tmp_path / "cityscapes"
    folder = root / "leftImg8bit" / "test" / "berlin"
    folder.mkdir(parents=True)
    stem = "berlin_000000_000019_leftImg8bit"
    rng = np.random.default_rng(0)
    cv2.imwrite(str(folder / f"{stem}.png"), rng.integers(0, 255, (64, 96, 3), np.uint8))
    (root / "test.txt").write_text(f"leftImg8bit/test/berlin/{stem}.png\n")
    path = tmp_path / "c.yaml"
    path.write_text(f"""
data: {{name: cityscapes, root: {root}}}
augment: {{crop: [48, 64]}}
loader: {{workers: 0}}
model: {{name: fcn, backbone: resnet18}}
train: {{epochs: 1, batch_size: 2}}
test: {{split: test, submission: true}}
""")
    from model import build_model

    model = build_model("fcn", 19, "resnet18")
    state = {"model": model.state_dict(), "spec": model.spec, "classes": list(Cityscapes.classes)}
    checkpoint.save(tmp_path / "w.pth", state)
    run = tmp_path / "run"
    arguments = ["--config", str(path), "--exp", str(run), "--checkpoint", str(tmp_path / "w.pth")]
    assert test.main(arguments) == 0
    with zipfile.ZipFile(run / "result" / "test-whole" / "submission.zip") as archive:
        assert archive.namelist() == [f"{stem}.png"]
        ids = cv2.imdecode(np.frombuffer(archive.read(f"{stem}.png"), np.uint8), cv2.IMREAD_UNCHANGED)
    gray = cv2.imread(str(run / "result" / "test-whole" / "gray" / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
    assert ids.shape == (64, 96) and np.array_equal(ids, np.array(official, np.uint8)[gray])


def test_an_optimised_network_scores_the_same(trained):
    plain, folded = score(*trained), score(*trained, "test.optimize=fold", "test.keep_memory=false")
    assert folded["mIoU"] == pytest.approx(plain["mIoU"], abs=1e-3)
    assert plain["protocol"]["engine"]["name"] == "torch"


@pytest.mark.skipif(missing("onnx", "onnxruntime") is not None, reason="needs the extra export")
def test_an_engine_scores_the_same_and_is_named(trained):
    settings = ("test.protocol=semseg", "test.base_size=96")
    plain, exported = score(*trained, *settings), score(*trained, *settings, "test.engine=onnxruntime")
    assert exported["mIoU"] == pytest.approx(plain["mIoU"], abs=1e-3)
    engine = exported["protocol"].pop("engine")
    assert exported["protocol"].items() <= plain["protocol"].items()
    assert engine["name"] == "onnxruntime" and engine["batches"] == [[4, 48, 64]] and engine["build_seconds"] > 0
