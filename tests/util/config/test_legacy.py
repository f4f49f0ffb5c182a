"""The older flat YAML means what it meant."""

import copy

import pytest
import yaml

from util.config.load import load
from util.config.yamltext import ConfigError

pytestmark = pytest.mark.fast

OLD = {  # every key of the older repositories' files
    "DATA": {
        "data_root": "/data/cityscapes",
        "train_list": "/data/l/fine_train.txt",
        "val_list": "/data/l/fine_val.txt",
        "classes": 19,
    },
    "TRAIN": {
        "arch": "sfnet",
        "layers": 101,
        "sync_bn": True,
        "train_h": 713,
        "train_w": 713,
        "scale_min": 0.5,
        "scale_max": 2.0,
        "rotate_min": -10,
        "rotate_max": 10,
        "zoom_factor": 8,
        "ignore_label": 255,
        "aux_weight": 0.4,
        "train_gpu": [0, 1],
        "workers": 16,
        "batch_size": 14,
        "batch_size_val": 4,
        "base_lr": 0.01,
        "epochs": 200,
        "start_epoch": 0,
        "output_stride": 16,
        "power": 0.9,
        "momentum": 0.9,
        "weight_decay": 0.0001,
        "manual_seed": None,
        "print_freq": 50,
        "save_freq": 1,
        "save_path": "exp/cityscapes/sfnet101/model",
        "weight": None,
        "resume": None,
        "evaluate": False,
    },
    "Distributed": {
        "dist_url": "tcp://127.0.0.1:6789",
        "dist_backend": "nccl",
        "multiprocessing_distributed": True,
        "world_size": 1,
        "rank": 0,
        "use_apex": True,
        "opt_level": "O0",
        "keep_batchnorm_fp32": None,
        "loss_scale": None,
    },
    "TEST": {
        "test_list": "/data/l/fine_val.txt",
        "split": "val",
        "base_size": 2048,
        "test_h": 713,
        "test_w": 713,
        "scales": [0.5, 1.0, 1.75],
        "has_prediction": False,
        "index_start": 3,
        "index_step": 7,
        "test_gpu": [1],
        "model_path": "exp/cityscapes/sfnet101/model/train_epoch_200.pth",
        "save_folder": "exp/cityscapes/sfnet101/result/epoch_200/val/ms",
        "colors_path": "dataset/cityscapes/cityscapes_colors.txt",
        "names_path": "dataset/cityscapes/cityscapes_names.txt",
    },
}


@pytest.fixture
def old(tmp_path):
    def write(**changes):
        raw = copy.deepcopy(OLD)
        for key, value in changes.items():
            section = next((s for s in raw if key in raw[s]), "TRAIN")
            raw[section][key] = value
        path = tmp_path / "old.yaml"
        path.write_text(yaml.safe_dump(raw))
        return str(path)

    return write


def test_every_key_arrives(old):
    experiment = load(old(), [])
    config, run = experiment.config, experiment.run
    assert (config.data.name, config.data.root, config.augment.crop) == ("cityscapes", "/data/cityscapes", (713, 713))
    assert config.data.train_list == "/data/l/fine_train.txt"
    assert (config.augment.scale, config.augment.rotate, config.loader.workers) == ((0.5, 2.0), (-10, 10), 8)
    assert (config.model.name, config.model.backbone) == ("sketchfill", "resnet101")
    assert config.model.options == {"output_stride": 16} and config.model.sync_bn
    assert config.model.weights == "initmodel/resnet101_v2.pth"
    assert config.loss.weights == {"out": 1.0, "aux": 0.4}
    assert (config.optim.lr, config.optim.head_factor, config.optim.power) == (0.01, 10, 0.9)
    assert (config.optim.momentum, config.optim.weight_decay) == (0.9, 1e-4)
    assert (config.train.epochs, config.train.batch_size, config.train.amp) == (200, 14, "off")
    assert (config.train.log_every, config.train.val_every, config.seed) == (50, 0, 0)
    test = config.test
    assert (test.split, test.protocol, test.base_size, test.window) == ("val", "sketchfill", 2048, (713, 713))
    assert (test.scales, test.index_start, test.index_step) == ((0.5, 1.0, 1.75), 3, 7)
    assert str(run.folder) == "exp/cityscapes/sfnet101"
    assert str(run.result) == "exp/cityscapes/sfnet101/result/epoch_200/val/ms"
    assert str(run.checkpoint).endswith("train_epoch_200.pth")


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"opt_level": "O1"}, "fp16"),
        ({"opt_level": "O2"}, "fp16"),
        ({"opt_level": "O0"}, "off"),
        ({"opt_level": "O1", "use_apex": False}, "off"),
    ],
)
def test_apex_becomes_autocast(old, changes, expected):
    assert load(old(**changes), []).config.train.amp == expected


def test_the_mobile_network_has_no_depth(old):
    config = load(old(arch="sfnet_mobile"), []).config
    assert (config.model.name, config.model.backbone) == ("sketchfill", "mobilenet_v2")


def test_pspnet_is_tested_with_its_own_stride(old):
    config = load(old(arch="psp", layers=50), []).config
    assert (config.model.name, config.test.protocol, config.model.options) == ("pspnet", "semseg", {})


def test_overrides_in_both_styles(old):
    config = load(
        old(), ["base_lr", "0.02", "TRAIN.epochs", "3", "scales", "[1.0]", "model.weights=none", "data_root", "/other"]
    ).config
    assert (config.optim.lr, config.train.epochs, config.test.scales) == (0.02, 3, (1.0,))
    assert (config.model.weights, config.data.root) == ("none", "/other")


@pytest.mark.parametrize(
    "overrides, part",
    [
        (["base_rl", "1"], "unknown key 'base_rl'; did you mean 'base_lr'?"),
        (["epochs"], "has no value"),
        (["epochs", "many"], "train.epochs"),
    ],
)
def test_a_wrong_override_is_named(old, overrides, part):
    with pytest.raises(ConfigError) as error:
        load(old(), overrides)
    assert part in str(error.value)


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"arch": "psanet"}, "arch 'psanet' is not supported"),
        ({"aux_wieght": 1}, "did you mean 'aux_weight'?"),
        ({"train_list": None}, "missing key 'train_list'"),
        ({"names_path": "nowhere/mine.txt"}, "nowhere/mine.txt is missing"),
    ],
)
def test_a_mistake_is_named(old, changes, part):
    with pytest.raises(ConfigError) as error:
        load(old(**changes), [])
    assert part in str(error.value)


def test_own_names_and_colors_are_read(old, tmp_path):
    (tmp_path / "names.txt").write_text("grass\nroad\n")
    (tmp_path / "colors.txt").write_text("0 255 0\n90 90 90\n")
    config = load(
        old(classes=2, names_path=str(tmp_path / "names.txt"), colors_path=str(tmp_path / "colors.txt")), []
    ).config
    assert config.data.name == "custom"
    assert config.data.classes == ("grass", "road") and config.data.colors == ((0, 255, 0), (90, 90, 90))


def test_names_must_match_the_class_count(old, tmp_path):
    (tmp_path / "names.txt").write_text("grass\nroad\n")
    with pytest.raises(ConfigError, match="2 names, but classes is 19"):
        load(old(names_path=str(tmp_path / "names.txt")), [])


def test_ade20k_is_shifted_by_what_the_file_says_never_by_a_path(old):
    ade = {"classes": 150, "names_path": "dataset/ade20k/ade20k_names.txt", "colors_path": "x"}
    shifted = load(old(**ade, data_root="/data/anything"), []).config
    assert shifted.data.name == "ade20k" and shifted.data.label_map is None
    plain = load(old(**ade, arch="psp", data_root="/data/ade20k"), []).config
    assert plain.data.label_map == {i: i for i in range(150)}
    cityscapes = load(old(data_root="/home/jade/shade"), []).config
    assert cityscapes.data.name == "cityscapes" and cityscapes.data.label_map is None


def test_another_test_list_is_the_one_that_is_scored(old):
    config = load(old(test_list="/data/l/test.txt"), []).config
    assert (config.test.split, config.data.test_list) == ("test", "/data/l/test.txt")


def test_exp_folder_wins_over_the_paths_in_the_file(old, tmp_path):
    run = load(old(), [], str(tmp_path / "run")).run
    assert run.folder == tmp_path / "run" and run.result == tmp_path / "run" / "result" and run.checkpoint is None
