"""A sweep tries every combination once, and goes on where it was killed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import failure, newest_metrics
from tests.paths import ROOT
from tool import sweep
from util import UserError

SMALL = ["model.weights=none", "augment.crop=[48,64]", "loader.workers=0", "train.epochs=1", "train.batch_size=4"]


@pytest.mark.fast
def test_values_are_parted_outside_of_brackets_and_quotes():
    assert sweep.split_values("0.01,0.02") == ["0.01", "0.02"]
    assert sweep.split_values("[1,2],[3,4]") == ["[1,2]", "[3,4]"]
    assert sweep.split_values("{a: 1, b: 2}") == ["{a: 1, b: 2}"]
    assert sweep.split_values("'a,b',c") == ["'a,b'", "c"]


@pytest.mark.fast
def test_every_combination_has_a_run(tmp_path):
    runs = sweep.combinations(["optim.lr=0.01,0.02", "train.epochs=3", "seed=0,1"], tmp_path)
    assert [run.folder.name for run in runs] == [
        f"optim.lr={lr},seed={seed}" for lr in ("0.01", "0.02") for seed in (0, 1)
    ]
    assert runs[1].overrides == ("optim.lr=0.01", "train.epochs=3", "seed=1")
    assert runs[1].tried == ("optim.lr=0.01", "seed=1")
    (run, _) = sweep.combinations(["augment.crop=[48,64],[32,32]"], tmp_path)
    assert run.folder.name == "augment.crop=_48_64_"


@pytest.mark.fast
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=0"], "no key has several values"),
        (["seed"], "expected section.key=value,value"),
        (["seed=0,,1"], "missing or stands twice"),
        (["seed=0,0"], "missing or stands twice"),
        (["seed=0,1", "seed=2"], "seed is named twice"),
        (["data.root=/a b,/a_b"], "one folder's name"),
    ],
)
def test_what_is_no_sweep_is_refused(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        sweep.combinations(overrides, tmp_path)


@pytest.mark.fast
def test_a_wrong_value_is_told_before_the_first_run(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "train", lambda *_: pytest.fail("a run was started"))
    words = ["street", "fcn18", "optim.lr=0.01,-1", "--exp", str(tmp_path / "sweep")]
    assert "optim.lr" in failure(capsys, sweep.main, words)
    assert "fcn81" in failure(capsys, sweep.main, ["street", "fcn81", "seed=0,1"])


@pytest.mark.fast
def test_each_gpu_has_a_run(monkeypatch):
    monkeypatch.setattr(sweep.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in sweep.slots()] == ["4", "6"]
    assert all(slot["NGPU"] == "1" for slot in sweep.slots())
    monkeypatch.setattr(sweep.torch.cuda, "device_count", lambda: 1)
    assert sweep.slots() == [{}]


FAKE = """
import json, pathlib, sys
words = sys.argv[1:]
folder = pathlib.Path(words[words.index("--exp") + 1])
lr, seed = (float(next(word for word in words if word.startswith(key)).split("=")[1]) for key in ("optim.lr", "seed"))
with open(folder / "calls", "a") as file:
    file.write("x")
if seed == 1 and lr == 0.02 and not (folder.parent / "mended").exists():
    sys.exit(2)
place = folder / "result" / "val-whole"
place.mkdir(parents=True, exist_ok=True)
score = {"mIoU": lr * 10 + seed / 100, "mAcc": 0.5, "allAcc": 0.5, "num_images": 1}
(place / "metrics.json").write_text(json.dumps(score | {"classes": [{"name": "a", "iou": score["mIoU"]}]}))
"""


def test_runs_that_failed_are_done_again_and_others_are_not(tmp_path, monkeypatch, capfd):
    """Trainings that score 10 lr + seed / 100: means 0.105 and 0.205, deviations 0.0071 each."""
    monkeypatch.setattr(sweep, "LAUNCH", (sys.executable, "-c", FAKE))
    folder = tmp_path / "sweep"
    words = ["street", "fcn18", "optim.lr=0.01,0.02", "seed=0,1", "--exp", str(folder)]
    assert sweep.main(words) == 1
    out = capfd.readouterr().out
    assert "failed with status 2" in out and "optim.lr=0.02,seed=1" in out
    (folder / "mended").touch()
    assert sweep.main(words) == 0
    out = capfd.readouterr().out
    assert "4 runs, 3 of them done" in out
    rows = [line.split() for line in out.splitlines() if line.startswith("optim.lr")]
    assert rows == [["optim.lr=0.02", "20.50", "0.71", "2"], ["optim.lr=0.01", "10.50", "0.71", "2"]]
    assert sorted(len(file.read_text()) for file in folder.glob("*/calls")) == [1, 1, 1, 2]
    with open(folder / "sweep.csv", newline="") as file:
        lines = [(row["optim.lr"], row["seed"], round(float(row["mIoU"]), 4)) for row in csv.DictReader(file)]
    assert lines == [("0.01", "0", 0.1), ("0.01", "1", 0.11), ("0.02", "0", 0.2), ("0.02", "1", 0.21)]
    with pytest.raises(UserError, match=r"holds another run \(street fcn18 optim.lr=0.01 seed=0\)"):
        sweep.main([*words, "train.epochs=3"])
    # The same keys in another order are the same sweep.
    swapped = ["street", "fcn18", "seed=0,1", "optim.lr=0.01,0.02", "--exp", str(folder)]
    assert sweep.main(swapped) == 0
    assert "4 runs, 4 of them done" in capfd.readouterr().out
    # An experiment that has changed since makes no table of both.
    mark = folder / "optim.lr=0.02,seed=0" / "sweep.json"
    known = json.loads(mark.read_text())
    mark.write_text(json.dumps(known | {"config": known["config"] | {"train.batch_size": 99, "train.log_every": 7}}))
    with pytest.raises(
        UserError, match=r"seed=0 was trained before the experiment changed: train.batch_size 99 -> 16\."
    ):
        sweep.main(words)


def test_a_signal_ends_a_sweep_once_its_run_is_saved(tmp_path, monkeypatch, capfd):
    child = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved', flush=True) or 75))"
    )
    monkeypatch.setattr(sweep, "LAUNCH", (sys.executable, "-c", f"{child}; print('on', flush=True); time.sleep(60)"))
    seen, sleep = [""], time.sleep

    def wait(seconds):  # once the run is on, the signal comes
        sleep(seconds)
        before = seen[0]
        seen[0] += capfd.readouterr().out
        if "on\n" in seen[0] and "on\n" not in before:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(sweep.time, "sleep", wait)
    with sweep.signals.Stop():
        assert sweep.main(["street", "fcn18", "seed=0,1", "--exp", str(tmp_path)]) == 75
    out = seen[0] + capfd.readouterr().out
    assert out.endswith("saved\nstopped by SIGTERM: the same command goes on where the runs are\n")
    assert not (tmp_path / "seed=1").exists()


@pytest.mark.fast
def test_one_sweep_at_a_time_works_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.lock, "HERE", 0.2)
    monkeypatch.setattr(sweep, "train", lambda *_: pytest.fail("a run was started"))
    code = "import sys; from pathlib import Path; from util.record import lock; lock.take(Path(sys.argv[1]), 'sweep')"
    words = [sys.executable, "-c", f"{code}; print('taken', flush=True); sys.stdin.read()", str(tmp_path)]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=f"another sweep is under way in this folder: process {other.pid}"):
            sweep.main(["street", "fcn18", "seed=0,1", "--exp", str(tmp_path)])
        other.stdin.close()


@pytest.mark.fast
def test_values_that_are_one_experiment_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"optim.lr=0.01 and optim.lr=1e-2 are one experiment"):
        sweep.main(["street", "fcn18", "optim.lr=0.01,1e-2", "--exp", str(tmp_path)])


@pytest.mark.fast
def test_a_failed_run_says_why_and_numbers_stay_numbers(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "status.json").write_text(json.dumps({"state": "failed", "error": "no such list\nmore"}))
    run = sweep.Run(tmp_path / "a", ("seed=0",), ("seed=0",))
    out = sweep.table([run], {str(run.folder): 2}, ["street", "fcn18"], tmp_path / "sweep.csv")
    assert out == f"failed with status 2, see train.log there: {run.folder}: no such list"
    assert [sweep.value_of(f"a.b={text}") for text in ("-3", "1e-3", "[1, 2]", "-x")] == [-3, 0.001, "[1, 2]", "-x"]


def start(folder, data, *values):
    facts = ["data.name=custom", f"data.root={data}", "data.classes=[a,b,c]", "loss.class_weights=", "data.colors="]
    words = [sys.executable, "-m", "tool.sweep", "street", "fcn18", "--exp", str(folder), *facts, *SMALL, *values]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def processes_of(folder) -> list[str]:
    """Command lines of the processes that work in a folder."""
    out = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in out.splitlines() if str(folder) in line]


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_ends_in_a_table(tmp_path, data):
    folder = tmp_path / "sweep"
    values = ["optim.lr=0.01,0.002", "seed=0"]
    first = start(folder, data, *values)
    for _ in range(3000):  # until the second run has begun
        if (folder / "optim.lr=0.002" / "sweep.json").is_file():
            break
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    for _ in range(100):
        if not processes_of(folder):
            break
        time.sleep(0.1)
    assert not processes_of(folder), "the training went on without its sweep"
    done = newest_metrics(folder / "optim.lr=0.01")
    before = done.stat().st_mtime_ns
    second = start(folder, data, *values)
    out, _ = second.communicate(timeout=600)
    assert second.returncode == 0, out
    assert "2 runs, 1 of them done" in out and done.stat().st_mtime_ns == before
    with open(folder / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = {row["optim.lr"]: float(row["mIoU"]) for row in rows}
    for lr, score in scores.items():
        assert json.loads(newest_metrics(folder / f"optim.lr={lr}").read_text())["mIoU"] == score
    lines = [line.split() for line in out.splitlines() if line.startswith("optim.lr=")]
    assert [line[0] for line in lines] == [f"optim.lr={lr}" for lr in sorted(scores, key=lambda lr: -scores[lr])]
    other = start(folder, data, "optim.lr=0.01,0.002", "seed=1")
    out, _ = other.communicate(timeout=60)
    assert other.returncode == 2 and "holds another run" in out
