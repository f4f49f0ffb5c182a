"""The shipped experiments: heads, bases and compositions; each builds its network, its loss and its predictor."""

import collections
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from dataset import dataset_class
from tests.paths import ROOT
from tool import launch, test
from tool.shared.network import check_batch, network_of
from util.config.load import load
from util.loss import SegLoss

SHIPPED = sorted(path for path in Path("config").glob("*/*.yaml"))
DATASETS, NETWORKS = (
    sorted(path.stem for path in Path("config/base", kind).glob("*.yaml")) for kind in ("data", "network")
)
WITHOUT_NUMBER = ("street_fcn18", "street_semflow18")  # shown beside the quickstart
HEAD = re.compile(
    r"# \S.*\n#\n"
    r"# Published: (?P<published>.+(?:\n#            .+)*)\n"
    r"# Measured:  (?P<measured>.+(?:\n#            .+)*)\n"
    r"# Command:   (?P<command>.+)\n"
    r"# Hardware:  (?P<hardware>.+(?:\n#            .+)*)\n(?!#)"
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_an_experiment_with_a_file_has_a_number_and_says_where_it_is_from(path):
    head = HEAD.match(path.read_text())
    assert head, "Published:, Measured:, Command: and Hardware:, in this order"
    numbers = {kind: re.findall(r"(\d+\.\d+) mIoU", head[kind]) for kind in ("published", "measured")}
    assert numbers["published"] or numbers["measured"] or path.stem in WITHOUT_NUMBER
    for kind, found in numbers.items():
        assert bool(found) != (head[kind] == "none"), kind
    results = (ROOT / "docs" / "results.md").read_text()
    assert all(number in results for number in numbers["measured"])
    dataset, experiment = re.search(r"sh tool/train.sh (\S+) (\S+)", head["command"]).groups()
    assert launch.find_experiment(dataset, experiment) == path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_an_experiment_builds_and_runs(path):
    config = load(path).config
    classes = dataset_class(config.data.name).classes
    model = network_of(config, len(classes))
    check_batch(config, model)
    image = torch.randn(2, 3, 65, 97)
    model.train()
    outputs = model(image)
    maps = {name: y for name, y in outputs.items() if name not in model.raw_outputs}
    assert all(y.shape == (2, len(classes), 65, 97) for y in maps.values())
    label = torch.randint(0, len(classes), (2, 65, 97), dtype=torch.uint8)
    total, _ = criterion_of(config, len(classes))(outputs, label)
    assert torch.isfinite(total)
    predictor = test.predictor_of(config, model, len(classes), torch.device("cpu"))
    if config.test.protocol != "whole":
        assert predictor.window == config.augment.crop and predictor.flip
    weights = config.model.weights
    assert weights == "none" or Path(weights).name in Path("initmodel/README.md").read_text()


def criterion_of(config, classes: int) -> SegLoss:
    loss = config.loss
    smoothing, extra = loss.label_smoothing, loss.extra
    return SegLoss(
        loss.weights, classes, 255, loss.class_weights, smoothing, loss.name, loss.options, extra, loss.outputs
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_composes_with_every_data_set(network):
    """The network, which is the same for each, is built once, without memory."""
    configs = [load(launch.find_experiment(dataset, network)).config for dataset in DATASETS]
    assert [config.data.name for config in configs] == DATASETS
    assert len({config.model.name for config in configs}) == 1
    with torch.device("meta"):
        model = network_of(configs[0], 5).train()
        outputs = model(torch.empty(2, 3, *configs[0].augment.crop))
    assert all(y.shape[:2] == (2, 5) for name, y in outputs.items() if name not in model.raw_outputs)
    for config in configs:
        assert outputs.keys() <= config.loss.weights.keys(), config.data.name


def test_the_network_of_every_experiment_is_one_to_compose_with():
    networks = collections.defaultdict(list)
    for name in NETWORKS:
        config = load(launch.find_experiment("cityscapes", name)).config
        networks[config.model.name].append(config.model.backbone)
    for path in SHIPPED:
        model = load(path).config.model
        assert model.backbone in networks[model.name], path


def test_the_published_protocols_are_those_of_the_papers():
    sketchfill = load("config/cityscapes/cityscapes_sfnet101.yaml").config
    assert (sketchfill.augment.crop, sketchfill.train.batch_size, sketchfill.train.epochs) == ((713, 713), 14, 200)
    assert sketchfill.test.scales == (0.5, 1.0, 1.75) and sketchfill.test.base_size == 2048
    ade = load("config/ade20k/ade20k_sfnet101.yaml").config
    assert (ade.augment.crop, ade.train.batch_size, ade.train.epochs) == ((473, 473), 16, 100)
    rugd = load("config/rugd/rugd_sfnet50.yaml").config
    assert (rugd.augment.crop, rugd.train.batch_size, rugd.train.epochs) == ((513, 513), 24, 150)
    assert rugd.augment.scale == (0.5, 1.5) and rugd.test.base_size == 688
    flow = load("config/cityscapes/cityscapes_semflow18.yaml").config
    assert (flow.augment.crop, flow.train.batch_size, flow.train.epochs) == ((1024, 1024), 16, 300)
    assert flow.loss.options == {"threshold": 0.7, "min_kept": 10000} and flow.loader.uniform == 0.5


def test_experiments_are_found_wherever_one_stands(tmp_path, monkeypatch):
    """Those of config/ there, then the project's own."""
    monkeypatch.chdir(tmp_path)
    assert launch.find_experiment("street", "fcn18") == ROOT / "config" / "street" / "street_fcn18.yaml"
    own = tmp_path / "config" / "street" / "street_fcn18.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("base: nowhere.yaml\n")
    assert launch.find_experiment("street", "fcn18").samefile(own)
    assert load(launch.find_experiment("camvid", "semflow50")).config.data.name == "camvid"
    with pytest.raises(ValueError, match="did you mean 'fcn18'"):
        launch.find_experiment("street", "fnc18")


@pytest.mark.slow
def test_an_installed_project_needs_no_folder(tmp_path):
    """The wheel holds commands, experiments and templates."""
    copy = tmp_path / "copy"  # setuptools leaves what it builds beside the sources
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True, timeout=60)
    pip = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(copy)]
    subprocess.run(pip, check=True, timeout=300)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    shipped = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    parts = [f for f in shipped if f.split("/")[0] in ("config", "model", "dataset", "util", "tool")]
    assert {f for f in parts if f.endswith((".py", ".yaml", ".html"))} <= names
