"""Experiments: what a YAML file may say, and how a mistake is told."""

from pathlib import Path

import pytest

from util.config.check import valid_keys
from util.config.load import describe, hand_over, load, saved_config
from util.config.yamltext import ConfigError

pytestmark = pytest.mark.fast

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
    config = load(small).config
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
        ("data.check=off", "data", "check", "off"),
        ("data.check=true", "data", "check", "full"),
        ("data.check=1000", "data", "check", 1000),
    ],
)
def test_overrides_are_read_as_yaml(small, override, section, key, value):
    assert getattr(getattr(load(small, [override]).config, section), key) == value


@pytest.mark.parametrize(
    "override, parts",
    [
        ("train.epohcs=3", ["unknown key 'train.epohcs'", "train.epochs"]),
        ("epochs=3", ["unknown key 'epochs'", "train.epochs"]),
        ("trian.epochs=3", ["unknown key 'trian'", "train"]),
        ("data.crop=[1, 2]", ["'data.crop' has a new name; write 'augment.crop'"]),
        ("data.on_error=skip", ["'data.on_error' was removed: an unreadable sample always stops a run; delete it"]),
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
        ("augment.crop=[1,", ["augment.crop=[1,", "cut off", "quotes"]),
        ("data.std=[0.229, 0.224, 0.225]", ["data.std", "scale 0..1", "std: [58.395, 57.12, 57.375]"]),
        ("data.channel_order=gbr", ["data.channel_order", "'rgb' or 'bgr'"]),
        ("data.check=0", ["data.check: 0 is neither full nor off, nor a number of samples"]),
        ("data.check=some", ["data.check: 'some' is neither"]),
        ("seed=010", ["'010' can be read in two ways"]),
        ("test.protocol=semseg", ["test.protocol", "semseg needs test.base_size or data.long_side"]),
    ],
)
def test_a_mistake_names_file_and_key(small, override, parts):
    with pytest.raises(ConfigError) as error:
        load(small, [override])
    for part in parts:
        assert part in str(error.value)


def test_every_mistake_is_told_at_once(small):
    with pytest.raises(ConfigError) as error:
        load(small, ["train.epohcs=3", "optim.lr=x", "trian.epochs=3"])
    lines = str(error.value).splitlines()
    assert len(lines) == 3 and all(line.startswith("command line: ") for line in lines)


def test_a_missing_key_is_named(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("data: {name: camvid, root: x}\nmodel: {name: fcn}\ntrain: {epochs: 1}\n")
    with pytest.raises(ConfigError, match="missing key 'train.batch_size'"):
        load(path)


@pytest.mark.parametrize(
    "text, part",
    [
        ("data: [", "not valid YAML"),
        ("- a\n- b\n", "expected sections"),
        ("", "expected sections"),
        ("data: {name: a}\ndata: {name: b}\n", "x.yaml:2: key 'data' was given before, on line 1"),
        ("base: none.yaml\n", "none.yaml: no such file"),
        ("base: x.yaml\n", "more than 2 levels"),
        ("base: 3\n", "base: expected the path"),
        ("base: [a.yaml, 3]\n", "base: expected the path"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, text, part):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(path)
    assert part in str(error.value)


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_bases_are_merged_from_left_to_right_and_key_by_key(small):
    write(
        small.parent,
        one="train: {epochs: 5, batch_size: 2}\noptim: {lr: 0.5}\n",
        two="train: {batch_size: 4}\n",
        child="base: [small.yaml, one.yaml, two.yaml]\ntrain: {log_every: 7}\n",
    )
    train = load(small.parent / "child.yaml").config.train
    assert (train.epochs, train.batch_size, train.log_every) == (5, 4, 7)
    single = load(small.parent / "child.yaml", ["train.log_every=3"])
    assert single.config.model.backbone == "mobilenet_v2" and single.config.train.log_every == 3


def test_bases_stand_on_one_another_two_levels_deep_and_no_deeper(small):
    write(small.parent, a="base: small.yaml\n", b="base: a.yaml\n", c="base: b.yaml\n")
    assert load(small.parent / "b.yaml").config == load(small).config
    with pytest.raises(ConfigError, match=r"a\.yaml: base: more than 2 levels.*base of .*c\.yaml"):
        load(small.parent / "c.yaml")


def test_options_belong_to_a_name_and_are_not_inherited_by_another(small):
    write(small.parent, child="base: small.yaml\nloss: {name: ohem, options: {min_kept: 5}}\n")
    child = small.parent / "child.yaml"
    assert load(child, ["loss.name=cross_entropy"]).config.loss.options == {}
    assert load(child, ["loss.name=ohem"]).config.loss.options == {"min_kept": 5}
    swapped = load(child, ["model.options={a: 1}", "model.name=fcn"]).config
    assert (swapped.model.name, swapped.model.options) == ("fcn", {"a": 1})
    assert swapped.loss.options == {"min_kept": 5}


def test_a_mistake_names_the_file_in_which_it_stands(small):
    write(small.parent, recipe="optim: {lr: fast}\n", child="base: [small.yaml, recipe.yaml]\ntrain: {epoch: 3}\n")
    with pytest.raises(ConfigError) as error:
        load(small.parent / "child.yaml", ["augment.crop=[0, 1]"])
    lines = [line.removeprefix(f"{small.parent}/") for line in str(error.value).splitlines()]
    assert any(line.startswith("recipe.yaml: optim.lr:") for line in lines)
    assert any(line.startswith("child.yaml: unknown key 'train.epoch'; did you mean 'train.epochs'") for line in lines)
    assert any(line.startswith("command line: augment.crop: ") for line in lines)


def test_each_value_knows_where_it_comes_from(small):
    write(small.parent, child="base: small.yaml\nmodel: {options: {b: 2}}\n")
    (small.parent / "small.yaml").write_text(SMALL.replace("v2}", "v2, options: {a: 1}}"))
    experiment = load(small.parent / "child.yaml", ["train.epochs=9"])
    found = {}
    for line in describe(experiment).splitlines():
        entry, _, source = line.partition("  # ")
        found[entry.strip()] = source.replace(f"{small.parent}/", "")
    assert found["epochs: 9"] == "command line"
    assert found["batch_size: 8"] == "small.yaml"
    assert found["options: {a: 1, b: 2}"] == "small.yaml, child.yaml"
    assert found["head_factor: 10.0"] == "default"
    assert found["flip: false"] == "protocol whole"


@pytest.mark.parametrize(
    "protocol, expected",  # flip, window, stride rate, base size: the published procedures, by hand
    [
        ("whole", (False, "none", 2 / 3, None)),
        ("semseg", (True, (360, 480), 2 / 3, 960)),
        ("sketchfill", (True, (360, 480), 1 / 2, 960)),
    ],
)
def test_a_protocol_is_resolved_and_single_keys_go_before_it(small, protocol, expected):
    overrides = [f"test.protocol={protocol}", "data.long_side=960"]
    test = load(small, overrides).config.test
    assert (test.flip, test.window, test.stride_rate, test.base_size) == expected and test.scales == (1.0,)
    test = load(small, [*overrides, "test.window=none", "test.scales=[1, 2]", "test.base_size=7"]).config.test
    assert (test.window, test.scales, test.base_size) == ("none", (1.0, 2.0), 7)


@pytest.mark.parametrize(
    "others, message",
    [
        ("test.windows=fast", "coarse logits, which only torch gives"),
        ("test.optimize=compile", "optimize is for torch"),
        ("test.amp=bf16", "onnxruntime does not compute in bf16"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(small, others, message):
    with pytest.raises(ConfigError, match=message):
        load(small, ["test.engine=onnxruntime", others])
    assert load(small, ["test.engine=openvino", "test.amp=bf16"]).config.test.engine == "openvino"


@pytest.fixture
def bases(tmp_path) -> Path:
    """A folder config/ with one data set, one recipe and one network, and no experiment."""
    config = tmp_path / "config"
    for folder in ("data", "recipe", "network"):
        (config / "base" / folder).mkdir(parents=True)
    write(config / "base" / "data", lake="data: {name: camvid, root: x}\noptim: {lr: 0.5}\ntrain: {epochs: 3}\n")
    write(config / "base" / "recipe", slow="optim: {lr: 0.25, power: 2.0}\ntrain: {batch_size: 4}\n")
    write(config / "base" / "network", net18="base: ../recipe/slow.yaml\nmodel: {name: fcn}\noptim: {power: 3.0}\n")
    return config


def test_an_experiment_without_a_file_is_composed_by_its_name(bases):
    experiment = load(bases / "lake" / "lake_net18.yaml", ["train.epochs=7"])
    config = experiment.config
    assert (config.data.name, config.model.name, config.train.epochs) == ("camvid", "fcn", 7)
    assert (config.optim.lr, config.optim.power) == (0.25, 3.0)  # data set below recipe below network
    (note,) = experiment.notes
    names = ["base/data/lake.yaml", "base/recipe/slow.yaml", "base/network/net18.yaml"]
    assert note.startswith("composed of ") and [name in note for name in names] == [True] * 3
    assert str(experiment.run.folder) == "exp/lake/net18"


def test_a_file_goes_before_a_composition(bases):
    (bases / "lake").mkdir()
    write(bases / "lake", lake_net18="base: [../base/data/lake.yaml, ../base/network/net18.yaml]\noptim: {lr: 0.125}\n")
    experiment = load(bases / "lake" / "lake_net18.yaml")
    assert experiment.config.optim.lr == 0.125 and not experiment.notes


@pytest.mark.parametrize("name", ["lake/lake_net19.yaml", "sea/sea_net18.yaml", "lake/net18.yaml"])
def test_what_cannot_be_composed_is_a_missing_file(bases, name):
    with pytest.raises(ConfigError, match="no such file"):
        load(bases / name)


def test_a_run_of_the_version_before_has_the_keys_of_today(small):
    config = load(small).config
    earlier = config.model_dump(mode="json")
    since = {
        key
        for key in earlier["augment"]
        if key.startswith(("vflip", "turn", "cutout", "own", "cutmix", "classmix", "copy"))
    }
    augment = {key: value for key, value in earlier.pop("augment").items() if key not in since}
    earlier["data"] |= augment | earlier.pop("loader")
    del earlier["data"]["long_side"]
    for key in ("scales", "flip", "window", "stride_rate", "base_size"):
        earlier["test"][key] = None  # protocols were resolved later
    assert saved_config(earlier, "last.pth") == config
    assert saved_config(earlier, "last.pth", ["train.epochs=9"]).train.epochs == 9


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_experiments_survive_being_written(path, tmp_path):
    experiment = load(path, ["train.epochs=77"])
    hand_over(experiment, tmp_path / path.name)
    assert load(tmp_path / path.name) == experiment
    (tmp_path / "config.yaml").write_text(describe(experiment))
    assert load(tmp_path / "config.yaml").config == experiment.config


def test_every_key_is_described():
    from util.config.schema import Config

    for dotted in valid_keys():
        section, _, key = dotted.rpartition(".")
        model = Config.model_fields[section].annotation if section else Config
        assert model.model_fields[key].description, dotted
