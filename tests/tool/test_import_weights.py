"""Published checkpoints turned into ours: what is recognised, what the file then holds, what is refused."""

import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dataset.cityscapes import Cityscapes
from model import build_model
from model.published import load_published
from tests.conftest import failure
from tests.paths import ROOT, SHARED
from tool import demo, import_weights, launch, test
from util import checkpoint
from util.record.files import sha256

KEYS = SHARED / "parity" / "keys"


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def published_weights(name: str, classes: int = 19) -> dict[str, torch.Tensor]:
    """Random values under the key names and shapes of a published checkpoint."""
    path = KEYS / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"published key names not present: no {path}")
    description = json.loads(path.read_text())
    torch.manual_seed(0)
    state = {
        key: torch.zeros(shape, dtype=torch.long) if key.endswith("tracked") else torch.rand(shape) * 0.1
        for key, shape in description["keys"].items()
    }
    state |= {copy: state[original] for copy, original in description["aliases"].items()}
    return {key: value[[0] * classes] if value.shape[:1] == (19,) else value for key, value in state.items()}


def write_as_sfsegnets(path: Path, weights: dict, name_of_numpy: bytes = b"numpy.core.multiarray") -> Path:
    """As the trainer of lxtGH/SFSegNets saves with NumPy 1: wrapped, prefixed, the score a NumPy number."""
    state = {
        "state_dict": {f"module.{k}": v for k, v in weights.items()},
        "optimizer": {"state": {}},
        "epoch": 174,
        "mean_iu": np.float64(0.7904),
        "command": "train.py --dataset cityscapes",
    }
    torch.save(state, path, _use_new_zipfile_serialization=False)
    here = np.float64().__reduce__()[0].__module__.encode()
    path.write_bytes(path.read_bytes().replace(here, name_of_numpy))
    return path


def run(*arguments) -> int:
    return import_weights.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def lite(tmp_path_factory) -> tuple[Path, dict]:
    """A published SFNet-Lite checkpoint and its tensors."""
    weights = published_weights("sfnet_lite_stdc1")
    return write_as_sfsegnets(tmp_path_factory.mktemp("published") / "best_epoch.pth", weights), weights


def test_a_published_checkpoint_becomes_ours(lite, tmp_path, capsys):
    source, weights = lite
    out = tmp_path / "new" / "lite.pth"
    assert run(source, "--out", out) == 0
    state = checkpoint.load(out)
    assert checkpoint.is_ours(state)
    assert (state["spec"]["name"], state["spec"]["backbone"]) == ("semanticflow_lite", "stdc1")
    assert tuple(state["classes"]) == Cityscapes.classes
    assert np.array_equal(state["colors"], Cityscapes.colors)
    assert state["provenance"] == {
        "file": "best_epoch.pth",
        "sha256": sha256(source),
        "family": "SFNet-Lite (lxtGH/SFSegNets)",
        "mean_iu": 0.7904,
        "epoch": 174,
    }
    expected = build_model("semanticflow_lite", 19, "stdc1")
    load_published(expected, weights)
    own = expected.state_dict()
    assert state["model"].keys() == own.keys()
    assert all(torch.equal(state["model"][name], own[name]) for name in own)
    text = capsys.readouterr().out
    assert "semanticflow_lite on stdc1, 19 classes" in text and "0.7904" in text and "epoch 174" in text
    assert "(road, sidewalk, building, ...); assumed from their number, 19" in text
    assert state["preprocessing"]["mean"] == [123.675, 116.28, 103.53] and state["dataset"] == "cityscapes"


def test_the_imported_file_is_scored_and_drawn(lite, tmp_path, capsys):
    """The command that is printed runs; here on one small picture."""
    source, _ = lite
    out, root, pictures = tmp_path / "lite.pth", tmp_path / "data", tmp_path / "pictures"
    assert run(source, "--out", out) == 0
    command = re.search(r"score it: python -m tool.test (.*)", capsys.readouterr().out).group(1)
    for folder in (root, pictures):
        folder.mkdir()
    rng = np.random.default_rng(0)
    cv2.imwrite(str(pictures / "a.png"), rng.integers(0, 255, (64, 96, 3), np.uint8))
    cv2.imwrite(str(root / "a.png"), rng.integers(0, 255, (64, 96, 3), np.uint8))
    cv2.imwrite(str(root / "l.png"), np.full((64, 96), 7, np.uint8))
    (root / "val.txt").write_text("a.png l.png\n")
    words = shlex.split(command.replace("data.root=FOLDER", f"data.root={root}"))
    assert test.main([*words, "loader.workers=0"]) == 0
    assert json.loads((tmp_path / "lite.result" / "metrics.json").read_text())["num_images"] == 1
    assert demo.main([str(pictures), "--checkpoint", str(out), "--out", str(tmp_path / "drawn")]) == 0
    assert (tmp_path / "drawn" / "a.png").is_file()


@pytest.mark.parametrize(
    ("file", "classes", "network", "dataset"),
    [
        ("mmseg_sfnet_r18", 11, ("semanticflow", "resnet18", {"flow_align_corners": False}), "camvid"),
        ("sketchfill_mobilenet", 24, ("sketchfill", "mobilenet_v2", {"fine_conv": True}), "rugd"),
        ("sfnet_dfnetv1", 150, ("semanticflow", "dfnet_v1", {"deep_supervision": False}), "ade20k"),
    ],
)
def test_network_and_classes_are_recognised(tmp_path, capsys, file, classes, network, dataset):
    source, (name, backbone, options) = tmp_path / f"{file}.pth", network
    torch.save({"meta": {"epoch": 300}, "state_dict": published_weights(file, classes)}, source)
    assert run(source) == 0
    state = checkpoint.load(tmp_path / f"{file}_imported.pth")
    spec = state["spec"]
    assert (spec["name"], spec["backbone"], spec["num_classes"]) == (name, backbone, classes)
    assert options.items() <= spec["options"].items()
    assert state["provenance"]["epoch"] == 300 and "mean_iu" not in state["provenance"]
    assert state["dataset"] == dataset and f"classes: those of {dataset} (" in capsys.readouterr().out


def test_options_that_the_weights_do_not_tell(tmp_path, capsys):
    source = tmp_path / "mobile.pth"
    torch.save(published_weights("sketchfill_mobilenet"), source)
    assert run(source, "--out", tmp_path / "os16.pth") == 0
    assert "not in the weights, the family's default: output_stride=16" in capsys.readouterr().out
    assert run(source, "output_stride=8", "--out", tmp_path / "os8.pth") == 0
    assert checkpoint.load(tmp_path / "os8.pth")["spec"]["options"]["output_stride"] == 8
    assert "not in the weights" not in capsys.readouterr().out


def test_the_experiment_of_the_same_network_is_named():
    spec = {"name": "sketchfill", "backbone": "resnet101", "options": {"output_stride": 16}}
    found = import_weights.experiment_of_network("cityscapes", spec)
    assert found == launch.find_experiment("cityscapes", "sfnet101")
    assert import_weights.experiment_of_network("cityscapes", spec | {"backbone": "resnet18"}) is None


def test_classes_are_those_of_a_data_set_or_a_list(tmp_path, capsys):
    """A data set of one class less: the last output stands for void."""
    torch.save(published_weights("sketchfill_mobilenet", 12), tmp_path / "w.pth")
    assert run(tmp_path / "w.pth", "--classes", "camvid") == 0
    state = checkpoint.load(tmp_path / "w_imported.pth")
    assert state["classes"][:2] == ["sky", "building"] and state["classes"][-1] == "void"
    assert len(state["colors"]) == 12 and state["colors"][-1] == [0, 0, 0]
    assert "void for what is ignored" in capsys.readouterr().out
    names = [f"c{i}" for i in range(12)]
    assert run(tmp_path / "w.pth", "--classes", ",".join(names)) == 0
    state = checkpoint.load(tmp_path / "w_imported.pth")
    assert state["classes"] == names and state["dataset"] == "custom"


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numpy_numbers_are_read(tmp_path, module):
    """As NumPy 1 and NumPy 2 name them; the plain load of torch refuses both."""
    path = write_as_sfsegnets(tmp_path / "w.pth", {"a": torch.arange(3.0)}, module)
    with pytest.raises(Exception, match="[Ww]eights.only"):
        torch.load(path, weights_only=True)
    state = checkpoint.load(path)
    assert state["mean_iu"] == 0.7904 and torch.equal(state["state_dict"]["module.a"], torch.arange(3.0))


class Command:
    """What a malicious file would hold."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    "value", [Command(print, "executed"), np.zeros(3), np.dtype(object), Command(np.dtype, "no such type")]
)
def test_nothing_but_numbers_is_read(tmp_path, capsys, value):
    torch.save({"state_dict": {}, "mean_iu": value}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: (refused|not a checkpoint)") as error:
        checkpoint.load(tmp_path / "w.pth")
    assert "Please" not in str(error.value) and "executed" not in capsys.readouterr().out


def test_what_is_unknown_is_one_message(lite, tmp_path, capsys):
    source, weights = lite
    torch.save({"state_dict": {"encoder.weight": torch.zeros(2)}}, tmp_path / "foreign.pth")
    torch.save({f"{key}.x": value for key, value in weights.items()}, tmp_path / "renamed.pth")
    torch.save({k: v for k, v in weights.items() if k != "head.fpn_in.0.0.bias"}, tmp_path / "short.pth")
    torch.save({"model": [1, 2]}, tmp_path / "list.pth")
    torch.save([torch.zeros(2)], tmp_path / "bare.pth")
    (tmp_path / "text.pth").write_text("<html>quota exceeded</html>")
    (tmp_path / "half.pth").write_bytes(source.read_bytes()[:5000])
    seven = {k: v[:7] if v.shape[:1] == (19,) else v for k, v in weights.items()}
    torch.save(seven, tmp_path / "seven.pth")
    ours = build_model("fcn", 3, "resnet18")
    checkpoint.save(tmp_path / "ours.pth", {"model": ours.state_dict(), "spec": ours.spec})
    for arguments, expected in (
        (["none.pth"], "no such checkpoint"),
        (["foreign.pth"], "no published family"),
        (["renamed.pth"], "no published family"),
        (["short.pth"], "head.fpn_in.0.0.bias|lateral.0.0.bias"),
        (["list.pth"], "no tensors"),
        (["bare.pth"], "maps names to tensors"),
        (["text.pth"], "not a checkpoint, or damaged"),
        (["half.pth"], "not a checkpoint, or damaged"),
        (["seven.pth"], "its 7 classes are those of no data set that SFNet-Lite"),
        (["seven.pth", "--classes", "a,b"], "the network has 7 outputs, custom 2 classes"),
        (["seven.pth", "--classes", "a,b,b"], "stands there twice"),
        (["ours.pth"], "this project's format already"),
        ([source, "--classes", "camvid"], "19 outputs, camvid 11 classes; data sets of 19, or of 18 and void: city"),
        ([source, "--classes", "cityscape"], "did you mean 'cityscapes'"),
        ([source, "--out", source], "would overwrite"),
        ([source, "widht=64"], "did you mean 'width'"),
        ([source, "width"], "expected option=value"),
        ([source, "width=64"], "shapes differ"),
    ):
        file, *rest = arguments
        message = failure(capsys, run, tmp_path / file, *rest)
        assert re.search(expected, message), message
    assert not list(tmp_path.glob("*_imported.pth"))


def test_a_backbone_alone_is_told_apart(tmp_path, capsys):
    torch.save(published_weights("semseg_resnet50_backbone"), tmp_path / "resnet50_v2.pth")
    message = failure(capsys, run, tmp_path / "resnet50_v2.pth")
    assert "model.weights" in message and "model.backbone is resnet50" in message
