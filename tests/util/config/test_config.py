"""Experiments: what a YAML file may say, and how a mistake is told."""

from pathlib import Path

import pytest

from util.config.load import ConfigError, dump_config, load_config, valid_keys

SHIPPED = sorted(Path("config").glob("*/*.yaml"))
SMALL = """
data: {name: camvid, root: somewhere}
augment: {crop: [360, 480]}
model: {name: sketchfill, backbone: mobilenet_v2}
train: {epochs: 3, batch_size: 8}
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_defaults_fill_what_the_file_does_not_say(small):
    config = load_config(small)
    assert config.augment.crop == (360, 480)
    assert config.optim.lr == 0.01 and config.optim.head_factor == 10
    assert config.loss.weights == {"out": 1.0, "aux": 0.4}
    assert config.seed == 0


@pytest.mark.parametrize(
    "override, section, key, value",
    [
        ("train.epochs=7", "train", "epochs", 7),
        ("optim.lr=1e-3", "optim", "lr", 0.001),
        ("augment.scale=[1, 2]", "augment", "scale", (1.0, 2.0)),
        ("data.label_map={0: 3, 7: 255}", "data", "label_map", {0: 3, 7: 255}),
        ("model.options={output_stride: 8}", "model", "options", {"output_stride": 8}),
        ("model.weights=none", "model", "weights", "none"),
        ("optim.clip_grad=", "optim", "clip_grad", None),
        ("test.window=[5, 6]", "test", "window", (5, 6)),
    ],
)
def test_overrides_are_read_as_yaml(small, override, section, key, value):
    assert getattr(getattr(load_config(small, [override]), section), key) == value


@pytest.mark.parametrize(
    "override, parts",
    [
        ("train.epohcs=3", ["unknown key 'train.epohcs'", "train.epochs"]),
        ("epochs=3", ["unknown key 'epochs'", "train.epochs"]),
        ("trian.epochs=3", ["unknown key 'trian'", "train"]),
        ("data.crop=[1, 2]", ["'data.crop' has a new name; write 'augment.crop'"]),
        ("data.on_error=skip", ["'data.on_error' is no more: an unreadable sample always stops a run; remove it"]),
        ("train.epochs=true", ["train.epochs", "integer", "True"]),
        ("train.epochs='3'", ["train.epochs", "integer"]),
        ("train.epochs=2.5", ["train.epochs", "integer"]),
        ("optim.lr=fast", ["optim.lr", "number", "fast"]),
        ("optim.lr=0", ["optim.lr", "greater than 0"]),
        ("optim.lr=.nan", ["optim.lr"]),
        ("train.amp=fp8", ["train.amp", "'bf16'", "fp8"]),
        ("augment.crop=[1, 2, 3]", ["augment.crop"]),
        ("augment.scale=[2, 1]", ["augment.scale", "2.0 is larger"]),
        ("train.accumulate=3", ["batch_size 8 is not a multiple of accumulate 3"]),
        ("data.name=custom", ["custom needs 'classes'"]),
        ("loss.weights={aux: 1}", ["'out' needs a weight"]),
        ("data.classes=[a, a]", ["twice"]),
        ("data.root=", ["data.root", "string"]),
        ("train", ["expected section.key=value"]),
    ],
)
def test_a_mistake_names_file_and_key(small, override, parts):
    with pytest.raises(ConfigError) as error:
        load_config(small, [override])
    for part in parts:
        assert part in str(error.value)


def test_every_mistake_is_told_at_once(small):
    with pytest.raises(ConfigError) as error:
        load_config(small, ["train.epohcs=3", "optim.lr=x"])
    lines = str(error.value).splitlines()
    assert len(lines) == 2 and all(line.startswith(str(small)) for line in lines)


def test_a_missing_key_is_named(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("data: {name: camvid, root: x}\nmodel: {name: fcn}\ntrain: {epochs: 1}\n")
    with pytest.raises(ConfigError, match="missing key 'train.batch_size'"):
        load_config(path)


@pytest.mark.parametrize(
    "text, part",
    [
        ("data: [", "not valid YAML"),
        ("- a\n- b\n", "expected sections"),
        ("", "expected sections"),
        ("data: {name: a}\ndata: {name: b}\n", "x.yaml:2: key 'data' was given before, on line 1"),
        ("base: none.yaml\n", "none.yaml: no such file"),
        ("base: x.yaml\n", "leads back"),
        ("base: 3\n", "base: expected the path"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, text, part):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert part in str(error.value)


def test_base_is_merged_key_by_key(small):
    child = small.parent / "child.yaml"
    child.write_text("base: small.yaml\ntrain: {epochs: 9}\nmodel: {backbone: resnet18}\n")
    config = load_config(child)
    assert (config.train.epochs, config.train.batch_size) == (9, 8)
    assert (config.model.name, config.model.backbone) == ("sketchfill", "resnet18")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_experiments_are_valid_and_survive_being_written(path, tmp_path):
    config = load_config(path)
    copy = tmp_path / "resolved.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_experiments_say_their_command_and_number(path):
    lines = path.read_text().splitlines()
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line)
    dataset, experiment = path.parent.name, path.stem.removeprefix(path.parent.name + "_")
    text = "\n".join(head)
    assert f"sh tool/train.sh {dataset} {experiment}" in text or "sh tool/quickstart.sh" in text
    assert "mIoU" in text or "number" in text


def test_every_key_is_described():
    from util.config.schema import Config

    for dotted in valid_keys():
        section, _, key = dotted.rpartition(".")
        model = Config.model_fields[section].annotation if section else Config
        assert model.model_fields[key].description, dotted
