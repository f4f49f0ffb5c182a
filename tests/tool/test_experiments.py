"""Every shipped experiment builds its network, its transform and its predictor from its own data set's facts."""

from pathlib import Path

import pytest
import torch

from dataset import dataset_class
from tool import test
from tool.shared.network import check_batch, network_of
from util.config.load import load_config
from util.loss import SegLoss

SHIPPED = sorted(Path("config").glob("*/*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_an_experiment_builds_and_runs(path):
    config = load_config(path)
    classes = dataset_class(config.data.name).classes
    model = network_of(config, len(classes))
    check_batch(config, model)
    image = torch.randn(2, 3, 65, 97)
    model.train()
    outputs = model(image)
    assert all(y.shape == (2, len(classes), 65, 97) for y in outputs.values())
    label = torch.randint(0, len(classes), (2, 65, 97), dtype=torch.uint8)
    loss = config.loss
    criterion = SegLoss(
        loss.weights, len(classes), 255, loss.class_weights, loss.label_smoothing, loss.name, loss.options, loss.extra
    )
    total, _ = criterion(outputs, label)
    assert torch.isfinite(total)
    predictor = test.build_predictor(config, model, len(classes), torch.device("cpu"))
    if config.test.protocol != "whole":
        assert predictor.window == config.augment.crop and predictor.flip
    weights = config.model.weights
    assert weights == "none" or Path(weights).name in Path("initmodel/README.md").read_text()


def test_the_published_protocols_are_those_of_the_papers():
    sketchfill = load_config("config/cityscapes/cityscapes_sfnet101.yaml")
    assert (sketchfill.augment.crop, sketchfill.train.batch_size, sketchfill.train.epochs) == ((713, 713), 14, 200)
    assert sketchfill.test.scales == (0.5, 1.0, 1.75) and sketchfill.test.base_size == 2048
    ade = load_config("config/ade20k/ade20k_sfnet101.yaml")
    assert (ade.augment.crop, ade.train.batch_size, ade.train.epochs) == ((473, 473), 16, 100)
    rugd = load_config("config/rugd/rugd_sfnet50.yaml")
    assert (rugd.augment.crop, rugd.train.batch_size, rugd.train.epochs) == ((513, 513), 24, 150)
    assert rugd.augment.scale == (0.5, 1.5) and rugd.test.base_size == 688
