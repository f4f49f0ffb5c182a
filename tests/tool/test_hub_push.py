"""A checkpoint goes to the Hub and comes back by the client's own HTTP, spoken by a server on the loopback."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from model import build_model
from tests.conftest import CLASSES, failure, make_experiment
from tests.hub_server import TOKEN, serving
from tests.paths import ROOT
from tool import hub as command
from tool import test as score_command
from tool import train
from tool.predict import Segmenter
from tool.shared.card import model_card, results_of
from tool.shared.hub import WEIGHTS, local_file, one_line, push_to_hub
from tool.shared.plugins import own_code
from util import UserError, checkpoint
from util.record.files import sha256

COLORS = [[128, 64, 128], [60, 140, 50], [90, 90, 90]]
NAME = "somebody/roads"


def write(folder, **entries):
    torch.manual_seed(0)
    network = build_model("fastscnn", len(CLASSES))
    facts = {"dataset": "camvid", "classes": list(CLASSES), "colors": COLORS, "label_map": {"7": 0, "8": 255}}
    facts |= {"preprocessing": {"mean": [1.5, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "channel_order": "bgr"}}
    facts |= {"protocol": {"scales": [0.5, 1.0], "flip": True, "window": "none"}}
    config = {"data": {"name": "camvid", "root": "/home/me/secret", "val_list": "/home/me/secret.txt"}, "model": {}}
    state = {"model": network.state_dict(), "spec": network.spec, "config": config, **facts, "optimizer": {"a": 1}}
    (folder / "model").mkdir(parents=True)
    checkpoint.save(folder / "model" / "last.pth", state | entries)
    return folder / "model" / "last.pth"


def score(file, folder, **changes):
    """A result of the file, as an evaluation writes it."""
    folder.mkdir(parents=True)
    classes = [{"name": name, "iou": 0.25 * index, "acc": None, "pixels": 9} for index, name in enumerate(CLASSES)]
    metrics = {"mIoU": 0.4321, "mAcc": 0.5, "allAcc": 0.75, "classes": classes, "num_images": 101}
    metrics |= {"protocol": {"split": "val", "scales": [1.0]}, "checkpoint": {"path": "x", "sha256": sha256(file)}}
    (folder / "metrics.json").write_text(json.dumps(metrics | changes))


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "run")


def card_of(file, **arguments):
    state = checkpoint.load(file)
    spec = state["spec"]
    return model_card(file, state, build_model(spec["name"], spec["num_classes"]), NAME, **arguments)


def run(code, hub, folder, token=TOKEN):
    """Run Python with the Hub at the stand-in; the client reads its environment when it is imported."""
    env = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(folder), "HF_HUB_DISABLE_TELEMETRY": "1"}
    env |= {"HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    return done


def test_a_checkpoint_goes_to_the_hub_and_comes_back(file, tmp_path):
    """By the commands of the page; what was pushed predicts what the file does, and names no folder."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / "a.png")
    score(file, tmp_path / "run" / "result" / "val-whole")
    push = f"from tool import hub; hub.main([{str(file)!r}, {NAME!r}, '--private', '--licence', 'mit'])"
    predict = f"""
from tool import predict, export, hub
assert predict.main(["hf://{NAME}", {str(tmp_path / "a.png")!r}, "--out", {str(tmp_path / "out")!r}]) == 0
assert export.main(["hf://{NAME}", "--to", "weights", "--out", {str(tmp_path / "own.safetensors")!r}]) == 0
import hubconf
print("loaded", hubconf.trained("hf://{NAME}@main").spec["name"])
for revision in (None, "main"):
    print("classes", len(predict.Segmenter.from_pretrained("{NAME}", revision, device="cpu").classes))
"""
    with serving() as hub:
        done = run(push, hub, tmp_path / "home")
        assert done.returncode == 0, done.stderr
        assert f"pushed: {hub.address}/{NAME}" in done.stdout + done.stderr
        assert hub.private == {NAME} and set(hub.repositories[NAME]) >= {WEIGHTS, "README.md"}
        pushed = hub.repositories[NAME]
        done = run(predict, hub, tmp_path / "home")
        assert done.returncode == 0, done.stderr
        assert "loaded fastscnn" in done.stdout and done.stdout.count(f"classes {len(Segmenter(file).classes)}") == 2
    assert b"secret" not in pushed[WEIGHTS] and b"secret" not in pushed["README.md"]
    assert "mIoU 43.21" in pushed["README.md"].decode() and "license: mit" in pushed["README.md"].decode()
    expected = Segmenter(file)(tmp_path / "a.png").mask
    assert np.array_equal(np.array(Image.open(tmp_path / "out" / "a.png")), expected)
    (tmp_path / "got.safetensors").write_bytes(pushed[WEIGHTS])
    got, sent = checkpoint.load(tmp_path / "got.safetensors"), checkpoint.load(file)
    assert all(torch.equal(got["model"][name], value) for name, value in sent["model"].items())
    assert got["label_map"] == sent["label_map"] and "optimizer" not in got


REFUSED = {
    "hf://somebody/nothing": "Repository Not Found.*hf auth login",
    f"hf://{NAME}@v9": "Revision Not Found[^;]*$",
    "hf://somebody/private": "hf auth login",
    "hf://somebody/pickles": re.escape(WEIGHTS),
}
ASK = f"""
import os, re
from huggingface_hub import constants
from tool.shared.hub import local_file, push_to_hub
def check(expected, function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        assert re.match(expected, str(error)) and "\\n" not in str(error), str(error)
    else:
        raise AssertionError(arguments)
for asked, expected in {REFUSED!r}.items():
    check(asked + ": .*" + expected, local_file, asked)
check("hf://{NAME}: .*hf auth login", push_to_hub, FILE, "{NAME}")
constants.HF_HUB_OFFLINE = True
check("hf://{NAME}: neither in the cache nor to be had", local_file, "hf://{NAME}")
print("all refused")
"""


def test_what_the_hub_refuses_is_one_line(file, tmp_path):
    """Nothing there, no right to see or to write, no safetensors; and a Hub that is not reached."""
    with serving() as hub:
        hub.repositories |= {NAME: {WEIGHTS: b"x"}, "somebody/pickles": {"pytorch_model.bin": b"x"}}
        hub.repositories["somebody/private"] = {WEIGHTS: b"x"}
        hub.private.add("somebody/private")
        done = run(ASK.replace("FILE", repr(str(file))), hub, tmp_path, token="")
        assert done.stdout == "all refused\n", done.stderr
        assert not any("pytorch_model" in call for call in hub.calls)
        assert hub.repositories[NAME] == {WEIGHTS: b"x"}


@pytest.mark.fast
@pytest.mark.parametrize("name", ["roads", "a/b/c", "/b", "a/", "a b/c", ""])
def test_a_name_that_is_none_is_refused(name, file):
    with pytest.raises(UserError, match="OWNER/NAME"):
        local_file(f"hf://{name}")
    with pytest.raises(UserError, match="OWNER/NAME"):
        push_to_hub(file, name)


@pytest.mark.fast
def test_names_and_licences_that_the_hub_takes_not_are_refused_before_a_repository_is_made(file, tmp_path):
    for name in ("me/..", "me/-roads"):
        with pytest.raises(UserError, match=f"^{re.escape(name)}: Repo id must"):
            push_to_hub(file, name)
    with pytest.raises(UserError, match="--licence My own: write it as the Hub does, such as mit"):
        push_to_hub(file, NAME, licence="My own")


@pytest.mark.fast
def test_an_upload_that_is_cut_off_is_one_line_and_a_defect_is_not():
    told = r"^hf://a/b: Error while uploading \(reset by peer\); nothing was committed"
    with pytest.raises(OSError, match=told), one_line("hf://a/b"):
        raise RuntimeError("Error while uploading.") from ConnectionResetError("reset by peer")
    with pytest.raises(RuntimeError), one_line("hf://a/b"):
        raise RuntimeError("another one")


@pytest.mark.fast
def test_where_a_file_is_needed_the_hub_is_refused_with_what_to_do(tmp_path, data, capsys):
    """Results lie beside a scored file; a training says what it started from."""
    told = failure(capsys, score_command.main, ["--checkpoint", f"hf://{NAME}", "data.root=x"])
    assert "tool.export hf://OWNER/NAME --to weights --out" in told
    path = make_experiment(tmp_path, data, model={"init": f"hf://{NAME}"})
    assert "--to weights --out" in failure(capsys, train.main, ["--config", str(path), "--exp", str(tmp_path / "run")])


@pytest.mark.fast
def test_paths_stay_paths(file):
    assert local_file(file) == str(file) and local_file("last.pth") == "last.pth"


@pytest.mark.fast
def test_the_card_says_what_the_checkpoint_knows(file, tmp_path):
    score(file, tmp_path / "run" / "result" / "val-whole")
    card = card_of(file, licence="cc-by-nc-4.0")
    front, _, body = card.removeprefix("---\n").partition("---\n")
    facts = yaml.safe_load(front)
    assert facts["license"] == "cc-by-nc-4.0" and facts["pipeline_tag"] == "image-segmentation"
    result = facts["model-index"][0]["results"][0]
    assert result["dataset"] == {"name": "camvid", "type": "camvid", "split": "val"}
    assert {each["type"]: each["value"] for each in result["metrics"]} == {"mIoU": 43.21, "mAcc": 50.0, "allAcc": 75.0}
    for index, (name, color) in enumerate(zip(CLASSES, ("#804080", "#3c8c32", "#5a5a5a"), strict=True)):
        assert f"| {index} | {name} | {color} |" in body
    assert "Mean 1.5, 2, 3, deviation 4, 5, 6" in body and "Channels: B, G, R" in body
    assert "scales 0.5, 1, flip True, window none" in body
    assert f'Segmenter("hf://{NAME}")' in body and "Licence: none stated" in body
    assert "Poudel et al." in body and "101 images" in body


@pytest.mark.fast
def test_results_of_another_file_or_a_part_are_not_its_scores(file, tmp_path):
    result = tmp_path / "run" / "result"
    score(file, result / "other", checkpoint={"path": "x", "sha256": "0" * 64})
    score(file, result / "kept", checkpoint=None)
    score(file, result / "val-whole" / "part-0-9")
    assert results_of(file) == [] and "None were measured with this file" in card_of(file)
    score(file, tmp_path / "run" / "model" / "last.result" / "val-semseg")
    score(file, tmp_path / "run" / "result" / "val-semseg")  # a run's own result, which that one repeats
    assert len(results_of(file)) == 1
    (result / "broken").mkdir()
    (result / "broken" / "metrics.json").write_text("[")
    with pytest.raises(UserError, match="broken/metrics.json: damaged"):
        results_of(file)


@pytest.mark.fast
def test_the_card_alone(file, tmp_path):
    assert command.main([str(file), NAME, "--card", str(tmp_path / "card.md")]) == 0
    assert (tmp_path / "card.md").read_text() == card_of(file)


@pytest.mark.fast
def test_a_card_names_code_that_a_checkpoint_needs(tmp_path):
    file = write(tmp_path / "a", config={"plugins": ["/home/me/mynet.py"]})
    assert "Segmenter(\"hf://somebody/roads\", plugins=['mynet.py'])" in card_of(file)
    assert "/home/me" not in card_of(file)
    spec = {"name": "mypkg.net.Mine", "backbone": "timm/resnet18.a1_in1k"}
    assert own_code({"spec": spec, "config": {"plugins": ["/home/me/mynet.py"]}}) == ["mynet.py", "mypkg.net.Mine"]
    assert own_code({"spec": {"name": "fcn", "backbone": "mypkg.net.stem"}}) == ["mypkg.net.stem"]


@pytest.mark.fast
def test_of_own_data_the_card_claims_no_licence(tmp_path):
    file = write(tmp_path / "a", dataset="custom")
    assert "does not say under which terms" in card_of(file)
    shutil.rmtree(tmp_path / "a")
    assert "free of rights" in card_of(write(tmp_path / "a", dataset="street"))
