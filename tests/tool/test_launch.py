"""The launchers as a user calls them, and what a user's mistake looks like from outside."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import CLASSES, COLORS, make_data
from tests.paths import ROOT
from tool import launch

SCRIPTS = sorted((ROOT / "tool").glob("*.sh"))


def call(*command, **environment) -> subprocess.CompletedProcess:
    """Runs a command in the root, on the CPU, with this interpreter."""
    env = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)


def small(folder: Path, data: Path, *overrides: str) -> list[str]:
    """Arguments that make `street fcn18` a run of seconds on the small data set."""
    return [
        "street",
        "fcn18",
        "--exp",
        str(folder),
        "data.name=custom",
        f"data.root={data}",
        f"data.classes={json.dumps(CLASSES)}",
        f"data.colors={json.dumps(COLORS)}",
        "augment.crop=[48, 64]",
        "loader.workers=0",
        "train.epochs=1",
        "train.batch_size=4",
        "train.amp=off",
        "loss.class_weights=",
        *overrides,
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_posix_shell(script):
    assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0


def test_train_then_evaluate_then_again(tmp_path, data):
    run = tmp_path / "run"
    first = call("sh", "tool/train.sh", *small(run, data))
    assert first.returncode == 0, first.stderr
    assert "pixel accuracy" in first.stdout
    score = json.loads((run / "result" / "val-whole" / "metrics.json").read_text())["mIoU"]
    again = call("sh", "tool/train.sh", *small(run, data))
    assert again.returncode == 0 and "nothing to do" in again.stdout
    alone = call("sh", "tool/test.sh", *small(run, data, "test.scales=[0.5, 1]", "test.flip=true"))
    assert alone.returncode == 0, alone.stderr
    metrics = json.loads((run / "result" / "val-whole-scales0.5_1-flip" / "metrics.json").read_text())
    assert metrics["protocol"]["scales"] == [0.5, 1.0] and metrics["protocol"]["flip"] is True
    assert 0 <= score <= 1


def test_two_processes_from_the_launcher(tmp_path, data):
    run = tmp_path / "run"
    done = call("sh", "tool/train.sh", *small(run, data, "model.sync_bn=true"), NGPU="2")
    assert done.returncode == 0, done.stderr
    env = json.loads((run / "env.json").read_text())
    assert env["processes"] == 2 and "fcn18" in env["command"] and "model.sync_bn=true" in env["command"]
    assert json.loads((run / "result" / "val-whole" / "metrics.json").read_text())["num_images"] == 5


def wrong_label(folder: Path) -> Path:
    data = make_data(folder / "wrong")
    path = data / "label" / "train_003.png"
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    label[5, 5] = 9
    cv2.imwrite(str(path), label)
    return data


MISTAKES = {
    "misspelt experiment": (["street", "fnc18"], ["no experiment 'fnc18'", "did you mean 'fcn18'", "sfnet_mobile"]),
    "misspelt data set": (["steet", "fcn18"], ["steet", "did you mean 'street'", "cityscapes"]),
    "misspelt key": (["street", "fcn18", "train.epohcs=3"], ["unknown key 'train.epohcs'", "train.epochs"]),
    "nothing named": ([], ["required: dataset", "sh tool/train.sh street fcn18"]),
    "missing data root": (["cityscapes", "sfnet101", "data.root=/nowhere"], ["/nowhere", "tool.prepare"]),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_one_message_and_a_status(tmp_path, name):
    arguments, parts = MISTAKES[name]
    result = call("sh", "tool/train.sh", *arguments, "--exp", str(tmp_path / "run"))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr + result.stdout
    for part in parts:
        assert part in result.stderr


@pytest.mark.fast
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "sh tool/train.sh street fcn18"),
        (["train", "street"], "write sh tool/train.sh street fcn18"),
        (
            ["test", "config/street/street_fcn18.yaml"],
            "write python -m tool.test --config config/street/street_fcn18.yaml",
        ),
        (["train", "street", "street_fcn18"], "did you mean 'fcn18'?"),
        (["train", "street", "fcn18", "--train.epochs", "3"], "an override has no dashes; write train.epochs=3"),
        (["train", "street", "fcn18", "-train.epochs=3"], "an override has no dashes; write train.epochs=3"),
        (["train", "street", "fcn18", "train.epochs =3"], "without blanks around '=': train.epochs=3"),
        (["train", "street", "fcn18", "epochs=3"], "did you mean 'train.epochs'?"),
        (["train", "street", "fcn18", "test.scales=[0.5,", "1]"], "in quotes: 'test.scales=[1, 2]'"),
        (["train", "street", "fcn18", "train.epochs=010"], "'010' can be read in two ways"),
        (["train", "street", "fcn18", "train.epochs=1:0"], "'1:0' can be read in two ways"),
    ],
)
def test_a_slip_of_the_hand_is_one_line_that_says_what_to_type(arguments, words):
    with pytest.raises(ValueError) as error:
        launch.main(arguments)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_label_outside_the_classes_is_named_with_its_file_and_the_map(tmp_path):
    result = call("sh", "tool/train.sh", *small(tmp_path / "run", wrong_label(tmp_path)))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    for part in ("train_003.png", "9", "custom"):
        assert part in result.stderr


def test_a_mistake_on_two_processes_ends_without_a_traceback(tmp_path, data):
    result = call("sh", "tool/train.sh", *small(tmp_path / "run", data, "train.batch_size=5"), NGPU="2")
    assert result.returncode != 0
    assert "5 does not divide by 2 processes" in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_missing_initial_weights_say_what_to_do(tmp_path, data):
    result = call("sh", "tool/train.sh", *small(tmp_path / "run", data, "model.weights=initmodel/missing.pth"))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    for part in ("initmodel/missing.pth", "initmodel/README.md", "model.weights=none"):
        assert part in result.stderr


def test_an_unreadable_picture_is_named(tmp_path):
    data = make_data(tmp_path / "data")
    (data / "image" / "train_002.png").write_bytes(b"no picture")
    result = call("sh", "tool/train.sh", *small(tmp_path / "run", data))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "train_002.png" in result.stderr


def test_a_taken_port_is_told(tmp_path, data):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = call(
            sys.executable,
            "-m",
            "tool.train",
            "--config",
            "config/street/street_fcn18.yaml",
            "--exp",
            str(tmp_path / "run"),
            RANK="0",
            WORLD_SIZE="2",
            LOCAL_RANK="0",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"127.0.0.1:{port}" in result.stderr and "port is in use" in result.stderr


def test_testing_before_training_says_so(tmp_path, data):
    result = call("sh", "tool/test.sh", *small(tmp_path / "run", data))
    assert result.returncode == 2 and "no such checkpoint" in result.stderr and "Train first" in result.stderr


@pytest.mark.parametrize("value, visible, expected", [("", 0, 1), ("", 4, 4), ("2", 4, 2), ("3", 0, 3), ("0", 2, 1)])
def test_how_many_processes(monkeypatch, value, visible, expected):
    monkeypatch.setenv("NGPU", value)
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: visible)
    assert launch.processes() == expected


@pytest.mark.parametrize("value", ["two", "9"])
def test_a_wrong_ngpu_is_told(monkeypatch, value):
    monkeypatch.setenv("NGPU", value)
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match="NGPU"):
        launch.processes()


def test_old_yaml_trains_and_is_scored(tmp_path, data):
    """The older style from end to end: names and colours from text files, the paths that the file names itself."""
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    (tmp_path / "colors.txt").write_text("\n".join(" ".join(map(str, c)) for c in COLORS))
    exp = tmp_path / "exp"
    (tmp_path / "old.yaml").write_text(f"""
DATA:
  data_root: {data}
  train_list: {data}/train.txt
  val_list: {data}/val.txt
  classes: 3
TRAIN:
  arch: sfnet_mobile
  layers: 101
  sync_bn: True
  train_h: 65
  train_w: 65
  scale_min: 0.8
  scale_max: 1.2
  rotate_min: -10
  rotate_max: 10
  zoom_factor: 8
  ignore_label: 255
  aux_weight: 0.4
  train_gpu: [0]
  workers: 0
  batch_size: 4
  batch_size_val: 4
  base_lr: 0.01
  epochs: 1
  start_epoch: 0
  output_stride: 16
  power: 0.9
  momentum: 0.9
  weight_decay: 0.0001
  manual_seed:
  print_freq: 1
  save_freq: 1
  save_path: {exp}/model
  weight:
  resume:
  evaluate: False
Distributed:
  dist_url: tcp://127.0.0.1:6789
  dist_backend: 'nccl'
  multiprocessing_distributed: True
  world_size: 1
  rank: 0
  use_apex: True
  opt_level: 'O0'
  keep_batchnorm_fp32:
  loss_scale:
TEST:
  test_list: {data}/val.txt
  split: val
  base_size: 96
  test_h: 65
  test_w: 65
  scales: [0.5, 1.0]
  has_prediction: False
  index_start: 0
  index_step: 0
  test_gpu: [0]
  model_path: {exp}/model/train_epoch_1.pth
  save_folder: {exp}/result/epoch_1/val/ms
  colors_path: {tmp_path}/colors.txt
  names_path: {tmp_path}/names.txt
""")
    config = str(tmp_path / "old.yaml")
    trained = call(sys.executable, "-m", "tool.train", "--config", config, "model.weights=none", "base_lr", "0.02")
    assert trained.returncode == 0, trained.stderr
    assert (exp / "model" / "last.pth").is_file()
    tested = call(sys.executable, "-m", "tool.test", "--config", config)
    assert tested.returncode == 0, tested.stderr
    result = exp / "result" / "epoch_1" / "val" / "ms"
    metrics = json.loads((result / "metrics.json").read_text())
    assert metrics["num_images"] == 5 and metrics["protocol"]["window"] == [65, 65]
    again = call(sys.executable, "-m", "tool.test", "--config", config, "has_prediction", "True")
    assert again.returncode == 0, again.stderr
    assert json.loads((result / "metrics.json").read_text())["mIoU"] == pytest.approx(metrics["mIoU"], abs=1e-12)


def test_metrics_equal_an_independent_recount_of_the_saved_predictions(tmp_path, data):
    run = tmp_path / "run"
    assert call("sh", "tool/train.sh", *small(run, data)).returncode == 0
    matrix = np.zeros((3, 3), np.int64)
    for line in (data / "val.txt").read_text().splitlines():
        image, label = line.split()
        truth = cv2.imread(str(data / label), cv2.IMREAD_UNCHANGED)
        guess = cv2.imread(str(run / "result" / "val-whole" / "gray" / Path(image).name), cv2.IMREAD_UNCHANGED)
        for t in range(3):
            for p in range(3):
                matrix[t, p] += int(((truth == t) & (guess == p)).sum())
    hit = matrix.diagonal()
    union = matrix.sum(0) + matrix.sum(1) - hit
    iou = hit[union > 0] / union[union > 0]
    metrics = json.loads((run / "result" / "val-whole" / "metrics.json").read_text())
    assert metrics["mIoU"] == pytest.approx(iou.mean(), abs=1e-9)
    assert metrics["allAcc"] == pytest.approx(hit.sum() / matrix.sum(), abs=1e-9)
    assert [c["pixels"] for c in metrics["classes"]] == matrix.sum(1).tolist()


def test_a_fresh_environment_is_asked_for(tmp_path):
    """Without an interpreter that has the packages, train.sh says how to get one."""
    tool = tmp_path / "tool"
    tool.mkdir()
    for script in SCRIPTS:
        shutil.copy(script, tool)
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("python", "python3"):
        (bare / name).write_text("#!/bin/sh\nexit 1\n")
        (bare / name).chmod(0o755)
    result = subprocess.run(
        ["sh", str(tool / "train.sh"), "street", "fcn18"],
        capture_output=True,
        text=True,
        env={"PATH": f"{bare}:/usr/bin:/bin"},
        check=False,
    )
    assert result.returncode == 2 and "sh tool/quickstart.sh" in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="closes streams as a POSIX shell does")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_without_standard_streams_runs(tmp_path, closed):
    """And what it opens next has none of their numbers."""
    program = (
        "import os, pathlib; from tool.shared import cli; "
        "cli.command(lambda: print('said') or pathlib.Path('number').write_text(str(os.dup(1) > 2)) * 0)"
    )
    line = f'exec "{sys.executable}" -c "$1" {closed}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["sh", "-c", line, "sh", program], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "number").read_text() == "True"
