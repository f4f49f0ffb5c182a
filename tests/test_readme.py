"""Every command in README.md and docs/running.md runs: here, in another test, or with data that only a user has."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from dataset.street import prepare
from tests.conftest import make_data
from tests.paths import ROOT
from tool import launch
from tool.doc import config as config_doc
from tool.prepare import main as prepare_main
from util.config.load import load

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = README + (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^( *)```(\w*)\n(.*?)^ *```", PAGES, re.S | re.M)
COMMANDS = [
    line.strip().partition("  #")[0].strip()
    for _, language, body in BLOCKS
    if language == "sh"
    for line in body.splitlines()
    if line.strip()
]
LAUNCHED = [c for c in COMMANDS if "tool/train.sh" in c or "tool/test.sh" in c]
# What runs elsewhere: the whole quickstart below, the checks are this suite, the older YAML in test_launch,
# import, demo, packing and bench in tests of their own.
ELSEWHERE = (
    "tool.pack cityscapes",
    "tool.bench data cityscapes",
    "sh tool/quickstart.sh",
    "sh tool/check.sh",
    "sh tool/gpu_check.sh",
    "tool.config camvid pspnet50",
    "tool.prepare custom",
    "my_old.yaml",
    "--checkpoint sfnet.pth",
    "--checkpoint train_epoch_200.pth",
    "tool.import_weights train_epoch_200.pth",
    "tool.demo photo.jpg",
    ". .venv/bin/activate",
    "pip install -e '.[export,serve]'",
    "tool.predict exp/street/sfnet_mobile/model/last.pth photo.jpg",
    "tool.export exp/street/sfnet_mobile/model/last.pth --to onnx",
    "tool.serve exp/street/sfnet_mobile/model/last.pth",
    "python -m tool.status",
    "tool.bench params cityscapes sfnet101",
    "tool.bench train camvid sfnet_mobile",
    "tool.bench eval cityscapes sfnet101",
    "tool.bench infer cityscapes semflow18",
)


def test_there_are_commands():
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("command", LAUNCHED)
def test_launched_experiments_exist_and_their_overrides_are_valid(command):
    words = [w for w in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", w)]
    dataset, experiment, *overrides = words[2:]
    if dataset == "mine":  # the experiment that the README writes, tested below
        return
    load(launch.find_experiment(dataset, experiment), overrides)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in LAUNCHED])
def test_other_commands_are_known(command):
    known = any(part in command for part in ELSEWHERE) or command.startswith("python -m tool.prepare cityscapes")
    assert known, f"{command}: no test runs this"


def test_prepare_names_a_missing_folder():
    with pytest.raises(FileNotFoundError, match="/nowhere/cityscapes: no such folder"):
        prepare_main(["cityscapes", "--root", "/nowhere/cityscapes"])


def test_own_data_as_the_readme_writes_it(tmp_path):
    """The YAML block, on pictures whose labels have the ids of its label_map."""
    import cv2
    import numpy as np

    body = next(body for _, language, body in BLOCKS if language == "yaml")
    raw = yaml.safe_load(body)
    data = make_data(tmp_path / "data")
    table = np.full(256, 99, np.uint8)
    table[:3] = (7, 8, 0)
    for path in (data / "label").iterdir():
        cv2.imwrite(str(path), table[cv2.imread(str(path), cv2.IMREAD_UNCHANGED)])
    raw["data"] |= {"root": str(data)}
    raw |= {"augment": {"crop": [48, 64]}, "loader": {"workers": 0}}
    raw["train"] |= {"epochs": 1, "batch_size": 4}
    path = tmp_path / "mine_fcn18.yaml"
    path.write_text(yaml.safe_dump(raw))
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    for stage in ("tool.train", "tool.test"):
        command = [sys.executable, "-m", stage, "--config", str(path), "--exp", str(tmp_path / "run")]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "result" / "val-whole" / "metrics.json").is_file()


def test_quickstart_in_a_copy_of_the_project(tmp_path):
    """The script from end to end on few, small scenes; twice, the second time with what is there."""
    copy = tmp_path / "copy"
    for folder in ("config", "model", "dataset", "util", "tool"):
        shutil.copytree(
            ROOT / folder,
            copy / folder,
            ignore=lambda d, names: [
                n
                for n in names
                if d == str(ROOT / "dataset")
                and (ROOT / "dataset" / n).is_dir()
                and not (ROOT / "dataset" / n / "__init__.py").is_file()
            ],
        )
    prepare(copy / "dataset" / "street", size=(96, 128), train=16, val=4)
    small = ["augment.crop=[64,96]", "train.epochs=1", "train.batch_size=8", "optim.warmup_iters=0"]
    env = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    for expected in ("finished", "nothing to do"):
        done = subprocess.run(
            ["sh", str(copy / "tool" / "quickstart.sh"), *small],
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout and "lane marking" in done.stdout
        *_, pictures, _, _, _, again = done.stdout.strip().splitlines()
        assert "result/val-whole/pictures" in pictures and "sh tool/train.sh" in again
        assert "expected: " not in done.stdout  # the score of the whole quickstart, which this is not
    result = copy / "exp" / "street" / "sfnet_mobile" / "result" / "val-whole"
    assert len(list((result / "pictures").iterdir())) == 4


def test_the_page_of_keys_is_that_of_the_schema():
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == config_doc.page() + "\n"
