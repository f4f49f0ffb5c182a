"""Code outside the project: what an experiment or a command names is imported, what a checkpoint names is not."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import dataset
import util.loss
from model import build_model
from model.base import SegModel
from model.table import ModelError
from tests.conftest import CLASSES, failure, make_experiment, newest_metrics
from tests.paths import ROOT
from tool import export, predict, replay, test, train
from tool.predict import Segmenter
from tool.shared import plugins
from tool.shared.network import network_of, try_out
from util import UserError, checkpoint
from util.config.load import saved_config

TRAIN = {"epochs": 1, "batch_size": 1}

PACKAGE = {
    "net.py": '''
from model import build_backbone
from torch import nn
from model.base import SegModel

class MyNet(SegModel):
    """One convolution on the coarsest map."""

    def __init__(self, num_classes: int, backbone: str = "OWN.net.stem", width: int = 8):
        super().__init__(build_backbone(backbone, 4))
        self.head = nn.Conv2d(self.backbone.channels[-1], num_classes, 1)

    def forward_features(self, x):
        return self.backbone(x)

    def decode(self, features):
        return {"out": self.head(features[-1])}

class stem(nn.Sequential):
    output_strides = (4,)

    def __init__(self, output_stride: int = 4, in_channels: int = 3):
        super().__init__(nn.Conv2d(in_channels, 8, 5, 4, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.channels, self.strides = [8], [4]

    def forward(self, x):
        return [super().forward(x)]
''',
    "parts.py": '''
from torch.nn import functional as F
from dataset import SegDataset

def focal(logits, label, ignore_label, gamma: float = 2.0):
    loss = F.cross_entropy(logits, label.long(), ignore_index=ignore_label, reduction="none")
    return ((1 - (-loss).exp()) ** gamma * loss).mean()

def dark(image, label, rng):
    return (image * rng.uniform(0.5, 1)).astype(image.dtype), label

class Own(SegDataset):
    """The pictures of the tests."""

    name = "own"
''',
}


@pytest.fixture(autouse=True)
def clean_tables():
    """Tables and modules as they were: each test is a process that has imported nothing."""
    before = [dict(table) for table in plugins.TABLES]
    modules = set(sys.modules)
    yield
    for table, entries in zip(plugins.TABLES, before, strict=True):
        table.clear()
        table.update(entries)
    for name in [name for name in sys.modules if name not in modules and name.startswith(("own_", "plugin_"))]:
        del sys.modules[name]


def forget():
    """Another process, as far as names go."""
    for table in plugins.TABLES:
        for name in [name for name in table if "own_" in str(name) or str(name).startswith("plugged")]:
            del table[name]
    for name in [name for name in sys.modules if name.startswith(("own_", "plugin_"))]:
        del sys.modules[name]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the user's on PYTHONPATH; its name."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / "lib" / name
    folder.mkdir(parents=True)
    for file, text in {"__init__.py": "", **PACKAGE}.items():
        (folder / file).write_text(text.replace("OWN", name))
    monkeypatch.syspath_prepend(str(folder.parent))
    return name


def experiment_of(folder, data, package):
    return make_experiment(
        folder,
        data,
        data={"name": f"{package}.parts.Own"},
        augment={"own": [f"{package}.parts.dark"]},
        model={"name": f"{package}.net.MyNet", "backbone": f"{package}.net.stem", "options": {"width": 4}},
        loss={"name": f"{package}.parts.focal", "options": {"gamma": 1.5}},
        train={"epochs": 1},
    )


def picture(folder):
    file = folder / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(file)
    return file


def run(experiment, folder, *more):
    return ["--config", str(experiment), "--exp", str(folder), *more]


def test_everything_by_dotted_path_trains_is_scored_and_says_what_it_needs(tmp_path, data, package, monkeypatch):
    path = experiment_of(tmp_path, data, package)
    assert train.main(run(path, tmp_path / "run")) == 0
    assert test.main(run(path, tmp_path / "run")) == 0
    assert 0 <= json.loads(newest_metrics(tmp_path / "run").read_text())["mIoU"] <= 1
    file = tmp_path / "run" / "model" / "last.pth"
    spec = checkpoint.load(file)["spec"]
    assert (spec["name"], spec["backbone"]) == (f"{package}.net.MyNet", f"{package}.net.stem")
    assert spec["options"] == {"width": 4}

    # A checkpoint alone imports nothing, and says what it needs; the command that names it may.
    forget()
    with pytest.raises(UserError, match=rf"{package}\.net\.MyNet.*never imports.*--plugin {package}\.net\.MyNet"):
        Segmenter(file)
    assert not [name for name in sys.modules if name.startswith(package)]
    names = [f"{package}.net.MyNet", f"{package}.net.stem"]
    image = picture(tmp_path)
    expected = Segmenter(file, plugins=names)(image).mask
    forget()
    given = [word for name in names for word in ("--plugin", name)]
    assert predict.main([str(file), str(image), "--out", str(tmp_path / "out"), *given]) == 0
    assert np.array_equal(np.array(Image.open(tmp_path / "out" / "picture.png")), expected)


def test_one_name_is_no_leave_for_another(tmp_path, data, package):
    assert train.main(run(experiment_of(tmp_path, data, package), tmp_path / "run")) == 0
    forget()
    with pytest.raises(UserError, match=rf"needs '{package}\.net\.stem'"):
        Segmenter(tmp_path / "run" / "model" / "last.pth", plugins=[f"{package}.net.MyNet"])


PLUGIN = '''
from tests.faults.toy import Toy
from model import MODELS
from util.loss import LOSSES, cross_entropy

class Plugged(Toy):
    """The same network, under a name of its own."""

MODELS["plugged"] = f"{__name__}.Plugged"
MODELS["plugged_class"] = Plugged
LOSSES["plugged_loss"] = lambda logits, label, ignore_label: cross_entropy(logits, label, ignore_label)
'''


@pytest.mark.parametrize("name", ["plugged", "plugged_class"])
def test_a_file_beside_the_experiment_adds_to_the_tables(name, tmp_path, data, capsys):
    (tmp_path / "mynet.py").write_text(PLUGIN)
    sections = {"model": {"name": name, "backbone": None, "options": {"dropout": 0.0}}, "train": {"epochs": 1}}
    path = make_experiment(tmp_path, data, loss={"name": "plugged_loss"}, plugins=["mynet.py"], **sections)
    assert train.main(run(path, tmp_path / "run")) == 0
    file = tmp_path / "run" / "model" / "last.pth"
    assert checkpoint.load(file)["config"]["plugins"] == [str(tmp_path / "mynet.py")]
    forget()
    with pytest.raises(UserError, match=rf"needs '{name}'.*--plugin {tmp_path}/mynet.py"):
        Segmenter(file)
    assert Segmenter(file, plugins=[str(tmp_path / "mynet.py")])(picture(tmp_path)).mask.shape == (48, 64)

    # A plugin that is another one by now: the name is gone, or the network is another.
    more = "class Plugged(Toy):\n    def __init__(self, num_classes, dropout: float = 0.2):\n        super().__init__("
    for before, after, told in (
        (f'["{name}"]', '["another"]', rf"needs '{name}', which \S+mynet.py does not add to the tables; has the file"),
        (
            "class Plugged(Toy):",
            more + "num_classes)\n        self.more = self.head[4]",
            "has the code of .* changed since",
        ),
    ):
        forget()
        (tmp_path / "mynet.py").write_text(PLUGIN.replace(before, after))
        with pytest.raises(UserError, match=told):
            Segmenter(file, plugins=[str(tmp_path / "mynet.py")])
    (tmp_path / "mynet.py").write_text(PLUGIN)

    forget()
    told = failure(capsys, test.main, ["--checkpoint", str(file)])
    assert "its loss needs 'plugged_loss'" in told and f"--plugin {tmp_path}/mynet.py" in told
    assert test.main(["--checkpoint", str(file), "--plugin", str(tmp_path / "mynet.py")]) == 0

    # The same run goes on after the file has moved: where a plugin lies is no part of the experiment.
    forget()
    (tmp_path / "moved").mkdir()
    (tmp_path / "mynet.py").rename(tmp_path / "moved" / "mynet.py")
    raw = yaml.safe_load(path.read_text()) | {"plugins": ["moved/mynet.py"]}
    path.write_text(yaml.safe_dump(raw))
    assert train.main(run(path, tmp_path / "run", "train.epochs=2")) == 0


DATA_PLUGIN = '''
from dataset import AUGMENTATIONS, DATASETS
from dataset.base import SegDataset

class Quarry(SegDataset):
    """The pictures of the tests."""

    name = "quarry"

def dark(image, label, rng):
    return (image * rng.uniform(0.5, 1)).astype(image.dtype), label

DATASETS["quarry"] = Quarry
AUGMENTATIONS["dark"] = dark
'''
STARTED_ANEW = """
import multiprocessing, sys
from tool import train
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    sys.exit(train.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_started_anew_find_a_files_data_set_and_augmentation(method, tmp_path, data):
    """As on macOS and Windows, and with Python 3.14; training and validation have a worker each."""
    (tmp_path / "mydata.py").write_text(DATA_PLUGIN)
    (tmp_path / "start.py").write_text(STARTED_ANEW)
    path = make_experiment(
        tmp_path,
        data,
        data={"name": "quarry"},
        augment={"own": ["dark"]},
        loader={"workers": 1},
        model={"name": "tests.faults.toy.Toy", "backbone": None},
        train={"epochs": 1},
        plugins=["mydata.py"],
    )
    command = [sys.executable, str(tmp_path / "start.py"), method, *run(path, tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "model" / "last.pth").is_file()


def test_the_launcher_hands_own_code_to_its_processes(tmp_path, data, package):
    path = experiment_of(tmp_path, data, package)
    folder = tmp_path / "config" / "mine"
    folder.mkdir(parents=True)
    (tmp_path / "empty.py").write_text("")
    raw = yaml.safe_load(path.read_text()) | {"plugins": ["../../empty.py"]}
    (folder / "mine_net.yaml").write_text(yaml.safe_dump(raw))
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "lib"), "NGPU": "2", "OMP_NUM_THREADS": "1"}
    environment["PYTHON"] = sys.executable
    command = ["sh", str(ROOT / "tool" / "train.sh"), "mine", "net"]  # in the folder that has this experiment
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 <= json.loads(newest_metrics(tmp_path / "exp").read_text())["mIoU"] <= 1


@pytest.mark.fast
@pytest.mark.parametrize("name", ["model", "util", "dataset"])
def test_a_file_of_the_users_that_hides_a_package_of_ours_is_named(name, tmp_path):
    (tmp_path / f"{name}.py").write_text("X = 1\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for words, status, told in (
        (["-m", "tool.config", "street", "fcn18"], 2, f"error: {tmp_path / name}.py hides {ROOT / name}, a package"),
        (["-c", "import tool.predict"], 1, f"ImportError: {tmp_path / name}.py hides {ROOT / name}, a package"),
    ):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == status and told in done.stderr
        assert status == 1 or done.stderr.count("\n") == 1


@pytest.mark.fast
@pytest.mark.parametrize(
    ("sections", "told"),
    [
        (
            {"model": {"name": "own_absent.net.MyNet"}},
            "small.yaml: model.name: own_absent.net.MyNet: no module 'own_abs",
        ),
        ({"model": {"name": "json.decoder.MyNet"}}, "module json.decoder has no class or function 'MyNet'"),
        ({"loss": {"name": "own_absent.focal"}}, "loss.name: own_absent.focal: no module 'own_absent'"),
        ({"augment": {"own": ["own_absent.dark"]}}, "augment.own: own_absent.dark: no module 'own_absent'"),
        ({"plugins": ["absent.py"]}, "small.yaml: plugins: absent.py: there is no such file"),
        ({"plugins": ["broken.py"]}, "broken.py: cannot be imported (invalid syntax"),
        ({"model": {"name": 5}}, "small.yaml: model.name: input should be a valid string, found 5"),
        ({"loss": {"extra": 3}}, "loss.extra: input should be an object, found 3"),
        ({"plugins": "broken.py"}, "plugins: input should be a valid"),
        ({"loss": {"name": "cross_entropi"}}, "loss.name: unknown loss 'cross_entropi'; did you mean 'cross_entropy'"),
        ({"augment": {"own": ["dark"]}}, None),
    ],
)
def test_a_mistake_is_one_line(sections, told, tmp_path, data, capsys):
    (tmp_path / "broken.py").write_text("def (")
    path = make_experiment(tmp_path, data, **sections)
    if told is None:  # a bare name may be a plugin's: the table is asked when the data are built
        with pytest.raises(dataset.DataError, match="unknown augmentation 'dark'"):
            train.main(run(path, tmp_path / "run"))
        return
    assert told in failure(capsys, train.main, run(path, tmp_path / "run"))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\nimport own_absent_too\n", r"no module 'own_absent_too', asked for by \S+net.py, line 2; looked for in /"),
        ("\n\nfrom model import Nothing\n", r"cannot be imported \(.*'Nothing'.*, asked for by \S+net.py, line 3\)"),
        ("def f(\n", r"own_{}\.net\.MyNet: cannot be imported \(.*, \S+own_{}/net.py, line 1\)"),
        ("def my_net(): pass\n", r"has no class or function 'MyNet'$"),
        ("def Mynet(): pass\n", r"has no class or function 'MyNet'; did you mean 'Mynet'\?"),
        ("MyNet = 5\n", r"MyNet: is of type int, no class or function"),
    ],
)
def test_a_mistake_in_a_users_module_is_told_with_its_line(text, told, tmp_path, monkeypatch):
    name = f"own_{tmp_path.name}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "net.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=told.replace("{}", tmp_path.name)):
        plugins.find(f"{name}.net.MyNet", "exp.yaml: model.name")


@pytest.mark.fast
def test_a_plugin_replaces_nothing_of_ours(tmp_path):
    (tmp_path / "mine.py").write_text("from model import MODELS\nMODELS['fcn'] = MODELS['mine'] = 'os.system'")
    ours = dict(plugins.MODELS)
    with pytest.raises(UserError, match=r"mine.py: replaces 'fcn', which is a name of this project"):
        plugins.import_file("mine.py", tmp_path, "exp.yaml: plugins")
    assert {name: plugins.MODELS[name] for name in ours} == ours


@pytest.mark.fast
def test_an_error_in_a_plugin_shows_its_traceback(tmp_path, data):
    (tmp_path / "faulty.py").write_text("1 / 0")
    path = make_experiment(tmp_path, data, plugins=["faulty.py"])
    for _ in range(2):  # what has failed is not taken for imported
        with pytest.raises(ZeroDivisionError):
            plugins.load(path)


@pytest.mark.fast
def test_a_hostile_checkpoint_runs_nothing(tmp_path):
    """A dotted path of what is imported anyway is no name of a network either."""
    file, bad = tmp_path / "bad.pth", "subprocess.check_output"
    spec = {"name": bad, "num_classes": 3, "backbone": None, "options": {}}
    checkpoint.save(file, {"model": {"weight": torch.zeros(1)}, "spec": spec, "classes": list(CLASSES)})
    with pytest.raises(UserError, match="never imports"):
        Segmenter(file)


@pytest.mark.fast
def test_own_augmentation_keeps_sizes_and_has_the_samples_numbers(monkeypatch):
    from dataset.augment.transform import TrainTransform

    image, label = np.full((20, 20, 3), 100, np.uint8), np.zeros((20, 20), np.uint8)

    def shift(image, label, rng):
        return image + np.uint8(rng.integers(1, 100)), label

    plain, own = TrainTransform((8, 8)), TrainTransform((8, 8), own=[shift])
    first, again = (own(image, label, np.random.default_rng(3))[0] for _ in range(2))
    assert np.array_equal(first, again)
    assert len(np.unique(first - plain(image, label, np.random.default_rng(3))[0])) == 1
    smaller = TrainTransform((8, 8), own=[lambda image, label, rng: (image[1:], label)])
    with pytest.raises(dataset.DataError, match=r"augment.own: .*lambda.* gave uint8 \(7, 8, 3\)"):
        smaller(image, label, np.random.default_rng(0))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda image, label, rng: image, r"<lambda> gave a ndarray; two arrays, uint8 \(8, 8, 3\) and \(8, 8\)"),
        (lambda image, label, rng: (image, None), "<lambda> gave ndarray and NoneType"),
        (
            lambda image, label, rng: (image, label + np.uint8(7)),
            "gave the label 7; the 3 classes are 0 to 2, and 255 is",
        ),
        (lambda image, label, rng: (image, label + np.uint8(255)), None),
    ],
)
def test_what_an_own_augmentation_gives_is_checked(change, told):
    from dataset.augment.transform import TrainTransform

    transform = TrainTransform((8, 8), own=[change])
    transform.num_classes = 3
    sample = np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), np.uint8), np.random.default_rng(0)
    if told is None:
        assert (transform(*sample)[1] == 255).all()
        return
    with pytest.raises(dataset.DataError, match=told):
        transform(*sample)


@pytest.mark.fast
def test_an_augmentation_of_another_signature_and_a_foreign_data_set_are_refused(monkeypatch):
    monkeypatch.setitem(dataset.AUGMENTATIONS, "own.dark", lambda image, label: (image, label))
    with pytest.raises(
        dataset.DataError, match=r"augment.own: own.dark\(image, label\): too many positional arguments"
    ):
        dataset.augmentation("own.dark")
    monkeypatch.setitem(dataset.DATASETS, "own.Data", dict)
    with pytest.raises(dataset.DataError, match="data set 'own.Data' is <class 'dict'>; a data set is a subclass of"):
        dataset.dataset_class("own.Data")


class Shaped(SegModel):
    """A network whose decoder gives what it is told to."""

    def __init__(self, num_classes: int, kind: str = "dict"):
        super().__init__(None)
        self.kind, self.head = kind, torch.nn.Conv2d(3, num_classes, 1)

    def forward_features(self, x):
        return [x]

    def decode(self, features):
        out = self.head(features[0])
        kinds = {"tensor": out, "tuple": (out, out), "other": {"logits": out}, "flat": {"out": out[0]}}
        return kinds.get(self.kind, {"out": out})


class ByItself(Shaped):
    """The same by a `forward` of its own, in evaluation mode alone."""

    def forward(self, x):
        return self.decode([x[..., ::2] if self.kind == "half" else x]) if not self.training else super().forward(x)


class Needy(SegModel):
    """A network with an option that has no default, which never calls its base."""

    def __init__(self, num_classes, width, **more):
        pass


@pytest.mark.fast
@pytest.mark.parametrize(
    ("network", "options", "told"),
    [
        (Shaped, {"kind": "tensor"}, r"test_plugins\.Shaped\.decode gave a Tensor; it gives a dict of logits"),
        (Shaped, {"kind": "tuple"}, "decode gave a tuple; it gives a dict"),
        (Shaped, {"kind": "other"}, r"decode gave \['logits'\]; it gives a dict of logits, the main ones as 'out'"),
        (Shaped, {"kind": "flat"}, r"decode gave 'out' of shape \(3, 8, 12\); logits are"),
        (ByItself, {"kind": "tensor"}, "ByItself gives a Tensor in evaluation mode; a network gives a dict"),
        (ByItself, {"kind": "half"}, r"logits \(1, 3, 8, 6\) for a picture of 8x12 and 3 classes; \(1, 3, 8, 12\) are"),
        (ByItself, {}, None),
        (torch.nn.Identity, {}, "is a Identity; a network is a subclass of model.base.Seg"),
        (Needy, {}, "needs the option 'width', which has no default"),
        (Needy, {"width": 3, "depth": 5}, r"its __init__ never calls super\(\).__init__\(backbone\)"),
    ],
)
def test_an_own_network_is_tried_before_the_first_step(network, options, told, monkeypatch):
    monkeypatch.setitem(plugins.MODELS, "own.net", network)
    crop = {"augment": {"crop": [8, 12]}, "data": {"name": "custom", "root": ".", "classes": list("abc")}}
    config = saved_config(crop | {"model": {"name": "own.net", "options": options}, "train": TRAIN}, "small.yaml")

    def build():
        model = network_of(config, 3)
        try_out(model, config, 3, torch.device("cpu"))
        assert model.training

    if told is None:
        build()
        return
    with pytest.raises(ValueError, match=told):
        build()


@pytest.mark.fast
def test_a_value_that_an_own_network_refuses_is_told_with_its_line(monkeypatch):
    def narrow(num_classes, width: int = 0):
        raise ValueError("too narrow")

    monkeypatch.setitem(plugins.MODELS, "own.net", narrow)
    line = narrow.__code__.co_firstlineno + 1
    with pytest.raises(
        ModelError, match=rf"'own.net' cannot have these options: too narrow \(.*test_plugins.py, line {line}"
    ):
        build_model("own.net", 3)


LABEL = torch.zeros(2, 4, 4, dtype=torch.uint8)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (
            lambda logits, label, ignore_label: logits.mean((2, 3)),
            r"loss 'own' gave float32 \(2, 3\); a loss gives a scal",
        ),
        (lambda logits, label, ignore_label: None, "gave None; a loss gives a scalar"),
        (lambda logits, label, ignore_label: 1.0, "gave a float; a loss gives a scalar"),
        (
            lambda logits, label, ignore_label: logits.detach().mean(),
            "gave a scalar without a gradient; compute it from",
        ),
        (
            lambda logits, label: logits.mean(),
            r"name: own\(logits, label\): too many positional arguments; a loss is a",
        ),
        (torch.nn.CrossEntropyLoss, "name: own is a class; a loss is a function"),
    ],
)
def test_what_is_no_loss_is_told(loss, told, monkeypatch):
    monkeypatch.setitem(util.loss.LOSSES, "own", loss)
    with pytest.raises(UserError, match=told):
        util.loss.SegLoss({"out": 1.0}, 3, name="own")({"out": torch.ones(2, 3, 4, 4, requires_grad=True)}, LABEL)


@pytest.mark.fast
def test_an_own_loss_may_know_how_many_classes_there_are(monkeypatch):
    def three(logits, label, ignore_label, weight: float = 1.0):
        assert logits.shape[1] == 3
        return weight * logits.mean()

    monkeypatch.setitem(util.loss.LOSSES, "own", three)
    total, _ = util.loss.SegLoss({"out": 1.0}, 3, name="own", options={"weight": 2.0})(
        {"out": torch.ones(2, 3, 4, 4)}, LABEL
    )
    assert total == 2


@pytest.mark.fast
@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        (torch.ones(2, 3, 4, 4), "the network gives a Tensor; a network gives a dict of logits"),
        ({"out": torch.ones(2, 4, 4, 4)}, r"output 'out' is float32 \(2, 4, 4, 4\); .*, here \(2, 3, 4, 4\)"),
        ({"out": torch.ones(2, 3, 2, 2)}, r"output 'out' is float32 \(2, 3, 2, 2\)"),
        ({"out": torch.ones(2, 3, 4, 4, dtype=torch.long)}, r"output 'out' is int64 \(2, 3, 4, 4\)"),
    ],
)
def test_outputs_that_no_loss_can_read_are_told(outputs, told):
    with pytest.raises(UserError, match=told):
        util.loss.SegLoss({"out": 1.0}, 3)(outputs, LABEL)


@pytest.mark.fast
def test_an_own_loss_without_class_weights_refuses_them(monkeypatch):
    monkeypatch.setitem(util.loss.LOSSES, "own.loss", lambda logits, label, ignore_label: logits.mean())
    with pytest.raises(UserError, match=r"loss.class_weights: loss 'own.loss' takes none"):
        util.loss.SegLoss({"out": 1.0}, 2, 255, (1.0, 2.0), name="own.loss")
    total, _ = util.loss.SegLoss({"out": 1.0}, 2, name="own.loss")(
        {"out": torch.ones(1, 2, 4, 4)}, torch.zeros(1, 4, 4)
    )
    assert total == 1.0


def test_an_exported_file_needs_no_class_but_its_data_set(tmp_path, data, package, capsys):
    path = experiment_of(tmp_path, data, package)
    assert train.main(run(path, tmp_path / "run")) == 0
    out = tmp_path / "net.pt2"
    last = str(tmp_path / "run" / "model" / "last.pth")
    assert export.main([last, "--to", "torch-export", "--size", "48", "64", "--out", str(out)]) == 0
    forget()
    assert Segmenter(out)(picture(tmp_path)).mask.shape == (48, 64)
    assert not [name for name in sys.modules if name.startswith(package)]
    told = failure(capsys, test.main, ["--checkpoint", str(out), f"data.root={data}"])
    assert f"its data set needs '{package}.parts.Own'" in told and ".net." not in told
    own = ["data.name=custom", f"data.classes=[{','.join(CLASSES)}]", "test.window=[48,64]"]
    assert test.main(["--checkpoint", str(out), f"data.root={data}", *own]) == 0


def test_a_record_is_refused_with_all_that_it_needs_and_says_how_to_replay_it(tmp_path, data, package, capsys):
    (tmp_path / "lib" / package / "parts.py").open("a").write(
        "def broken(logits, label, ignore_label):\n    return logits.mean() * float('nan')\n"
    )
    path = experiment_of(tmp_path, data, package)
    more = [f"loss.name={package}.parts.broken", "loss.options={}"]
    told = failure(capsys, train.main, run(path, tmp_path / "run", *more))
    command = told.partition("python -m tool.replay ")[2].split()
    names = [f"{package}.{each}" for each in ("parts.Own", "net.MyNet", "net.stem", "parts.broken", "parts.dark")]
    assert command[1:] == [word for name in names for word in ("--plugin", name)]
    forget()
    told = failure(capsys, replay.main, command[:1])
    assert f"its data set needs '{package}.parts.Own'" in told and " ".join(command[1:]) in told
    assert not [name for name in sys.modules if name.startswith(package)]
    with pytest.raises(FloatingPointError, match="reproduced: step 0"):
        replay.main(command)


def test_exported_weights_name_the_file_without_its_folder(tmp_path, data):
    (tmp_path / "mynet.py").write_text(PLUGIN)
    path = make_experiment(
        tmp_path, data, model={"name": "plugged", "backbone": None}, plugins=["mynet.py"], train={"epochs": 1}
    )
    assert train.main(run(path, tmp_path / "run")) == 0
    out = tmp_path / "slim.safetensors"
    assert export.main([str(tmp_path / "run" / "model" / "last.pth"), "--to", "weights", "--out", str(out)]) == 0
    forget()
    with pytest.raises(UserError, match=r"needs 'plugged'.*--plugin mynet\.py"):
        Segmenter(out)
    assert Segmenter(out, plugins=[str(tmp_path / "mynet.py")])(picture(tmp_path)).mask.shape == (48, 64)
