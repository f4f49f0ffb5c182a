"""Pages made from the code are those on disk, and what the others show works."""

import importlib
import json
import re
import shutil
import sys

import pytest
import torch
from torchvision.models import segmentation

import model
from model.published.table import LAYOUTS
from tests.conftest import make_experiment
from tests.paths import ROOT
from tool import test, train
from tool.doc import models
from util.config.load import load

DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S)


@pytest.fixture(scope="module")
def page() -> str:
    return models.page(ROOT / "config")


def test_the_page_of_networks_is_that_of_the_code(page):
    """Made anew by: python -m tool.doc.models > docs/models.md."""
    assert (DOCS / "models.md").read_text(encoding="utf-8").rstrip("\n") == page
    for name in model.MODELS:
        assert f"\n| `{name}` |" in page, name
    for layout in LAYOUTS:
        assert f"\n| {layout.source} |" in page, layout.source


def test_its_figures_are_those_that_are_published(page):
    """Parameters in millions of the authors' own code with 19 classes, and scores in torchvision's package."""
    for name, parameters in (("pspnet", 49.08), ("sketchfill", 53.93), ("semanticflow", 12.87), ("cgnet", 0.50)):
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert row.split("|")[4].strip() == f"{parameters:.2f}"
    score = segmentation.LRASPP_MobileNet_V3_Large_Weights.DEFAULT.meta["_metrics"]["COCO-val2017-VOC-labels"]["miou"]
    assert f"| `lraspp` | mobilenet_v3_large | COCO val2017, classes of VOC | {score} |" in page


def test_a_paper_is_found_or_asked_for():
    class Citing:
        """Net. Source: Doe et al., "A Net" (CVPR 2030, arXiv 1), section 3."""

    class Made(Citing):
        pass

    assert models.paper_of(Citing) == models.paper_of(Made) == 'Doe et al., "A Net" (CVPR 2030, arXiv 1)'
    with pytest.raises(ValueError, match="docstring of int cites no paper"):
        models.paper_of(int)


def test_a_new_network_is_one_file_and_one_line(tmp_path, data, monkeypatch):
    """Those on the page, as they stand there."""
    code, line = blocks("new_network.md", "python")
    (tmp_path / "tinynet.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    name, path = re.fullmatch(r'\s*"(\w+)": "model\.(\S+)",\s*', line).groups()
    monkeypatch.setitem(model.MODELS, name, path)
    paper = models.paper_of(importlib.import_module("tinynet").TinyNet)  # which the page of networks needs
    assert paper.startswith("Long et al.")
    four = model.build_model(name, 5, in_channels=4).eval()(torch.randn(1, 4, 32, 32))
    assert four["out"].shape == (1, 5, 32, 32)
    network = model.build_model(name, 5).train()
    out = network(torch.randn(2, 3, 45, 67))["out"]
    assert out.shape == (2, 5, 45, 67)
    out.square().sum().backward()
    assert all(value.grad is not None for value in network.parameters())
    experiment = make_experiment(
        tmp_path,
        data,
        model={"name": name, "options": {"dropout": 0.2}},
        train={"epochs": 1},
        loss={"weights": {"out": 1}},
    )
    assert train.main(["--config", str(experiment), "--exp", str(tmp_path / "run")]) == 0
    assert test.main(["--checkpoint", str(tmp_path / "run" / "model" / "last.pth")]) == 0
    metrics = json.loads((tmp_path / "run" / "model" / "last.result" / "metrics.json").read_text())
    assert metrics["num_images"] == 5
    assert models.paper_of(importlib.import_module("model.fcn").FCN)
    sys.modules.pop("tinynet")


def test_the_config_beside_theirs_says_what_theirs_says(tmp_path):
    """Values of MMSegmentation's pspnet_r50-d8 for Cityscapes, 80,000 iterations."""
    shutil.copytree(ROOT / "config" / "base", tmp_path / "base")
    folder = tmp_path / "cityscapes"
    folder.mkdir()
    (folder / "cityscapes_theirs.yaml").write_text(blocks("from_mmseg.md", "yaml")[0])
    config = load(folder / "cityscapes_theirs.yaml").config
    assert (config.model.name, config.model.backbone, config.model.options) == (
        "pspnet", "resnet50_v1c", {"align_corners": False}
    )  # fmt: skip
    assert config.augment.crop == (512, 1024) and config.augment.scale == (0.5, 2.0) and config.augment.photometric
    assert config.augment.rotate_prob == config.augment.blur_prob == 0
    optim = config.optim
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.01, 0.9, 5e-4)
    assert (optim.power, optim.head_factor, optim.decay_norm, optim.warmup_iters) == (0.9, 1, True, 0)
    assert config.loss.weights == {"out": 1.0, "aux": 0.4} and config.test.protocol == "whole"
    assert abs(config.train.epochs * (2975 // config.train.batch_size) - 80_000) < 400
