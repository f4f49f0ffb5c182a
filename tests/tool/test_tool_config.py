"""The command that prints a resolved experiment."""

import pytest
import yaml

from tests.conftest import failure
from tool import config
from util.config.load import load

pytestmark = pytest.mark.fast


def test_it_prints_yaml_that_is_the_experiment_and_says_where_each_value_is_from(capsys, tmp_path):
    assert config.main(["camvid", "semflow50", "train.epochs=3"]) == 0
    text = capsys.readouterr().out
    assert "# composed of config/base/data/camvid.yaml, config/base/recipe/semflow.yaml, config/base/network" in text
    lines = {line.partition("  # ")[0].strip(): line.partition("  # ")[2] for line in text.splitlines()}
    assert lines["root: dataset/camvid"] == "config/base/data/camvid.yaml"
    assert lines["power: 1.0"] == "config/base/recipe/semflow.yaml"
    assert lines["backbone: resnet50"] == "config/base/network/semflow50.yaml"
    assert lines["epochs: 3"] == "command line"
    assert lines["momentum: 0.9"] == "default"
    (tmp_path / "resolved.yaml").write_text(text)
    again = load(tmp_path / "resolved.yaml").config
    assert again == load("config/camvid/camvid_semflow50.yaml", ["train.epochs=3"]).config


def test_it_reads_a_file_too(capsys, experiment):
    assert config.main(["--config", str(experiment), "seed=4"]) == 0
    raw = yaml.safe_load(capsys.readouterr().out)
    assert raw["seed"] == 4 and raw["model"]["name"] == "fcn"


@pytest.mark.parametrize(
    "words, parts",
    [
        ([], ["which experiment?", "python -m tool.config cityscapes sfnet101"]),
        (["camvid", "train.epochs=3"], ["which experiment?"]),
        (["camvid", "semflow5"], ["no experiment 'semflow5' for camvid", "did you mean 'semflow50'"]),
        (["camvod", "semflow50"], ["data set 'camvod'", "did you mean 'camvid'"]),
        (["camvid", "semflow50", "--train.epochs", "3"], ["write train.epochs=3"]),
        (["camvid", "semflow50", "--train.epochs=3"], ["write train.epochs=3"]),
        (["camvid", "semflow50", "augment.crop=[3,", "4]"], ["augment.crop=[3,", "cut off", "quotes"]),
        (["--conf", "x", "--wrong"], ["--wrong"]),
    ],
)
def test_a_slip_is_answered_with_what_to_type(capsys, words, parts):
    message = failure(capsys, config.main, words)
    assert all(part in message for part in parts)
