"""What a checkpoint knows goes before the experiment: preprocessing, network, classes, an output for void."""

import json
import re
import shutil
import zipfile

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from model import build_model
from tests.conftest import CLASSES, COLORS, failure, make_experiment, newest_metrics
from tool import demo, import_weights, test, train
from tool.shared import cli
from tool.shared.network import load_initial_weights, weights_in_order
from tool.shared.trained import check_init, experiment_of
from util import checkpoint
from util.checkpoint.facts import Facts
from util.config.load import load

NET = {"name": "fcn", "backbone": "resnet18", "options": {"dropout": 0.0, "auxiliary": False, "output_stride": 32}}
FACTS = Facts("custom", CLASSES, COLORS, {"0": 0, "1": 1, "2": 2}, (90.0, 91.0, 92.0), (80.0, 81.0, 82.0), "bgr")


def write(path, facts=FACTS, **entries):
    """A checkpoint of ours with these facts and a network that any class may win."""
    torch.manual_seed(0)
    model = build_model(NET["name"], len(facts.classes), NET["backbone"], **NET["options"])
    checkpoint.save(path, {"model": model.state_dict(), "spec": model.spec, **facts.entries(), **entries})
    return path


@pytest.fixture
def tried(tmp_path, data):
    """score(checkpoint, *overrides, **sections): metrics.json and the predicted classes of the first picture."""

    def score(file, *overrides, **sections):
        experiment = make_experiment(tmp_path, data, **{"model": NET, "test": {"index_step": 2}, **sections})
        words = ["--config", experiment, "--exp", tmp_path / "run", "--checkpoint", file, *overrides]
        assert test.main([str(word) for word in words]) == 0
        file = newest_metrics(tmp_path / "run" / "result")  # of a part of the list; the predictions lie above it
        gray = cv2.imread(str(file.parents[1] / "gray" / "val_000.png"), cv2.IMREAD_UNCHANGED)
        return json.loads(file.read_text()), gray

    return score


def expected_classes(data, file) -> np.ndarray:
    """The classes that the network of FACTS sees in the first picture, computed by hand."""
    state = checkpoint.load(file)
    model = build_model(state["spec"]["name"], state["spec"]["num_classes"], "resnet18", **state["spec"]["options"])
    model.load_state_dict(state["model"])
    image = cv2.imread(str(data / "image" / "val_000.png"))[..., ::-1].astype(np.float32)  # R, G, B
    x = (image - np.float32(FACTS.mean)) / np.float32(FACTS.std)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(x[..., ::-1].copy()).permute(2, 0, 1)[None])["out"]
    return logits[0]


def test_preprocessing_comes_from_the_checkpoint(tried, tmp_path, data):
    file = write(tmp_path / "w.pth")
    metrics, gray = tried(file)
    assert np.array_equal(gray, expected_classes(data, file).argmax(0).numpy())
    protocol = metrics["protocol"]
    assert (protocol["mean"], protocol["std"]) == ([90, 91, 92], [80, 81, 82])
    assert protocol["channel_order"] == "bgr" and protocol["overridden"] == [] and protocol["void"] is None
    same, _ = tried(file, data={"mean": [90, 91, 92], "std": [80, 81, 82], "channel_order": "bgr"})
    assert same["mIoU"] == metrics["mIoU"]
    assert demo.main([str(data / "image" / "val_000.png"), "--checkpoint", str(file), "--out", str(tmp_path)]) == 0
    drawn = cv2.cvtColor(cv2.imread(str(tmp_path / "val_000.png")), cv2.COLOR_BGR2RGB)
    assert np.array_equal(drawn[: gray.shape[0], -gray.shape[1] :], np.array(COLORS, np.uint8)[gray])


def test_what_the_experiment_says_otherwise_is_refused_and_the_command_line_is_told(tried, tmp_path):
    file = write(tmp_path / "w.pth")
    for section, message in (
        (
            {"data": {"mean": [1, 2, 3]}},
            r"small\.yaml: data\.mean is \[1,2,3\], .*w\.pth was trained with \[90,91,92\]",
        ),
        ({"data": {"channel_order": "rgb"}}, "data.channel_order is rgb, .* with bgr"),
        ({"model": NET | {"backbone": "resnet50"}}, "holds the network fcn on resnet18, .* says fcn on resnet50"),
        ({"model": NET | {"name": "pspnet"}}, "holds the network fcn on resnet18, .* says pspnet on resnet18"),
        (
            {"model": NET | {"options": {"output_stride": 16}}},
            r"model\.options\.output_stride is 16, .*w\.pth was trained with 32",
        ),
        ({"data": {"classes": ["sky", "grass", "dog"]}}, "other classes than .*: dog for ball"),
        ({"data": {"classes": [*CLASSES, "d"], "colors": [*COLORS, [1, 2, 3]]}}, "trained for 3 classes .* has 4"),
        ({"test": {"void": "class"}}, "test.void: class needs a network with an output for what is ignored"),
    ):
        with pytest.raises(ValueError, match=message):
            tried(file, **section)
    metrics, _ = tried(file, "data.mean=[1,2,3]", "model.options={output_stride: 16}")
    assert metrics["protocol"]["mean"] == [1, 2, 3]
    first, second = metrics["protocol"]["overridden"]
    assert "model.options.output_stride is 16" in first and "data.mean is [1,2,3]" in second


def test_classes_in_another_order_are_put_in_order(tried, tmp_path, data):
    file = write(tmp_path / "w.pth")
    plain, gray = tried(file)
    order = {"classes": list(CLASSES[::-1]), "colors": [list(color) for color in COLORS[::-1]]}
    turned, turned_gray = tried(file, data=order | {"label_map": {0: 2, 1: 1, 2: 0}})
    assert turned["mIoU"] == plain["mIoU"] and np.array_equal(turned_gray, 2 - gray)
    assert turned["classes"] == plain["classes"][::-1]
    with pytest.raises(ValueError, match=r"value 0 of the label files is ball, in the training of .* it was sky"):
        tried(file, data=order)


def test_an_output_for_void_has_no_part_or_is_a_class(tried, tmp_path, data):
    """Against counts by hand; the strip of void in each label is two pixels wide."""
    facts = Facts("custom", (*CLASSES, "void"), (*COLORS, (0, 0, 0)), None, FACTS.mean, FACTS.std, "bgr")
    file = write(tmp_path / "w.pth", facts)
    logits = expected_classes(data, file)
    label = torch.from_numpy(cv2.imread(str(data / "label" / "val_000.png"), cv2.IMREAD_UNCHANGED)).long()
    one = {"index_step": 1}
    ignored, gray = tried(file, test=one)
    assert np.array_equal(gray, logits[:3].argmax(0).numpy()) and ignored["protocol"]["void"] == "ignore"
    whole, gray = tried(file, test=one | {"void": "class"})
    predicted = logits.argmax(0)
    assert np.array_equal(gray, predicted.numpy()) and whole["protocol"]["void"] == "class"
    label[label == 255] = 3
    for index, entry in enumerate(whole["classes"]):
        hit = ((label == index) & (predicted == index)).sum()
        union = ((label == index) | (predicted == index)).sum()
        assert entry["iou"] == (pytest.approx(float(hit / union)) if union else None)
    ious = [entry["iou"] for entry in whole["classes"] if entry["iou"] is not None]
    assert len(whole["classes"]) == 3 and whole["mIoU"] == pytest.approx(np.mean(ious))
    assert whole["allAcc"] == pytest.approx(float((label == predicted).float().mean()))
    seen = label < 3  # over labelled pixels alone
    assert whole["labelled_pixels"]["allAcc"] == pytest.approx(float((label == predicted)[seen].float().mean()))
    table = newest_metrics(tmp_path / "run").with_name("table.txt").read_text()
    assert "void: class: ignored pixels are one more class" in table
    again, _ = tried(file, "test.has_prediction=true", test=one | {"void": "class"})
    assert again["mIoU"] == whole["mIoU"] and again["labelled_pixels"] == whole["labelled_pixels"]


def test_without_an_experiment_a_checkpoint_is_scored_by_its_own(tmp_path, data, capsys):
    experiment = make_experiment(tmp_path, data, model=NET, data={"mean": [90, 91, 92]}, train={"epochs": 1})
    assert train.main(["--config", str(experiment), "--exp", str(tmp_path / "run")]) == 0
    state = checkpoint.load(tmp_path / "run" / "model" / "last.pth")
    assert state["preprocessing"]["mean"] == [90, 91, 92] and state["label_map"] == {"0": 0, "1": 1, "2": 2}
    assert test.main(["--config", str(experiment), "--exp", str(tmp_path / "run")]) == 0
    file = tmp_path / "mine.pth"
    checkpoint.save(file, state)
    assert test.main(["--checkpoint", str(file)]) == 0
    own, alone = (
        json.loads((folder / "metrics.json").read_text())
        for folder in (tmp_path / "run" / "result" / "val-whole", tmp_path / "mine.result")
    )
    assert alone["mIoU"] == own["mIoU"] and alone["protocol"]["mean"] == [90, 91, 92]
    assert "--checkpoint FILE" in failure(capsys, test.main, [])
    foreign = write(tmp_path / "foreign.pth")
    assert "missing key 'data.root'" in failure(capsys, experiment_of, foreign, [])
    assert experiment_of(foreign, [f"data.root={data}"], tmp_path)[0].config.data.classes == CLASSES


def test_a_training_starts_from_what_fits(tmp_path, data):
    def checked(*overrides, **sections):
        path = make_experiment(tmp_path, data, model=NET | {"init": str(file)}, **sections)
        experiment = load(path, overrides)
        check_init(experiment, experiment.config.data.classes)

    facts = {"mean": list(FACTS.mean), "std": list(FACTS.std), "channel_order": "bgr"}
    file = write(tmp_path / "w.pth")
    checked(data=facts)
    checked(data=facts | {"classes": list(CLASSES[::-1])})
    with pytest.raises(ValueError, match=r"data\.mean is \[123\.675,116\.28,103\.53\], .* with \[90,91,92\]"):
        checked()
    checked("data.mean=[1,2,3]", "data.std=[4,5,6]", "data.channel_order=rgb")
    with pytest.raises(ValueError, match=r"trained for other classes .*model\.init_skip"):
        checked(data=facts | {"classes": ["a", "b", "c"]})
    file = tmp_path / "lraspp.pth"
    torch.save(lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3).state_dict(), file)
    checked()
    with pytest.raises(ValueError, match=r"lraspp\.pth was trained with rgb"):
        checked(data={"channel_order": "bgr"})
    file = tmp_path / "w.pth"
    checked("model.init_skip=[classifier.]", data=facts | {"classes": ["a", "b", "c"]})


@pytest.mark.parametrize(("name", "backbone"), [("fcn", "resnet18"), ("cgnet", None), ("encnet", "resnet18")])
def test_weights_in_another_order_of_classes_give_logits_in_that_order(name, backbone):
    torch.manual_seed(0)
    model = build_model(name, 3, backbone).eval()
    state = {"model": model.state_dict(), "spec": model.spec, "classes": ["a", "b", "c"]}
    weights, told = weights_in_order(state, ("c", "a", "b"))
    other = build_model(name, 3, backbone).eval()
    other.load_state_dict(weights)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(other(x)["out"], model(x)["out"][:, [2, 0, 1]], atol=1e-5)
    assert "a, b, c" in told and weights_in_order(state, ("a", "b", "c")) == (state["model"], None)


def test_a_network_that_cannot_be_put_in_order_says_so(tmp_path):
    model = build_model("espnet", 3)
    state = {"model": model.state_dict(), "spec": model.spec, "classes": ["a", "b", "c"]}
    with pytest.raises(ValueError, match=r"cannot be put in order; write data\.classes: \[a, b, c\]"):
        weights_in_order(state, ("c", "a", "b"))


def test_a_published_checkpoint_is_scored_as_it_is(tried, tmp_path, data):
    """Against the publisher's own code; the names of the classes are the experiment's."""
    torch.manual_seed(0)
    theirs = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "lraspp.pth")
    network = {"name": "lraspp", "backbone": "mobilenet_v3_large", "options": {}}
    metrics, gray = tried(tmp_path / "lraspp.pth", model=network)
    assert metrics["protocol"]["mean"] == [123.675, 116.28, 103.53]
    image = cv2.imread(str(data / "image" / "val_000.png"))[..., ::-1].astype(np.float32)
    x = (image - np.float32([123.675, 116.28, 103.53])) / np.float32([58.395, 57.12, 57.375])
    with torch.no_grad():
        logits = theirs(torch.from_numpy(x.copy()).permute(2, 0, 1)[None])["out"]
    assert (gray == logits[0].argmax(0).numpy()).mean() > 0.999
    with pytest.raises(ValueError, match="holds the network lraspp on mobilenet_v3_large, .* says fcn on resnet18"):
        tried(tmp_path / "lraspp.pth")


def test_initial_weights_are_put_in_order(tmp_path, data):
    file = write(tmp_path / "w.pth")
    config = load(make_experiment(tmp_path, data, model=NET | {"init": str(file)})).config
    model = build_model("fcn", 3, "resnet18", **NET["options"])
    load_initial_weights(model, config, CLASSES[::-1])
    weights = checkpoint.load(file)["model"]
    assert torch.equal(model.classifier[-1].bias, weights["classifier.4.bias"].flip(0))


def test_flipped_bits_are_refused_by_file_and_tensor_at_every_door(tmp_path, data, capsys):
    """One bit in the middle of the largest tensor."""
    file = write(tmp_path / "flipped.pth")
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + largest.file_size // 2] ^= 4
    file.write_bytes(content)
    experiment = make_experiment(tmp_path, data, model=NET)
    picture = str(data / "image" / "val_000.png")
    common = ["--config", str(experiment), "--exp", str(tmp_path / "run")]
    own = tmp_path / "run" / "model" / "last.pth"
    own.parent.mkdir(parents=True)
    shutil.copyfile(file, own)
    for name, door, words in (
        (file, test.main, [*common, "--checkpoint", str(file)]),
        (file, test.main, ["--checkpoint", str(file)]),
        (own, test.main, common),
        (own, train.main, common),
        (file, train.main, [*common, "train.resume=never", f"model.init={file}"]),
        (file, train.main, [*common, "train.resume=never", f"model.weights={file}"]),
        (file, demo.main, [picture, "--checkpoint", str(file), "--out", str(tmp_path / "drawn")]),
        (file, import_weights.main, [str(file)]),
    ):
        with pytest.raises(SystemExit) as status:
            cli.command(lambda door=door, words=words: door(words))
        told = capsys.readouterr().err
        assert status.value.code == 2 and "Traceback" not in told
        assert re.search(rf"{name}: damaged, the checksum of tensor model\.backbone\.\S+ \(", told), told


def test_safetensors_are_read_at_every_door(tmp_path, data, tried):
    """Published weights as Hugging Face gives them."""
    torch.manual_seed(0)
    theirs = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    save_file(theirs.state_dict(), tmp_path / "b.safetensors")
    network = {"name": "lraspp", "backbone": "mobilenet_v3_large", "options": {}}
    (one, first), (two, second) = (tried(tmp_path / name, model=network) for name in ("a.pth", "b.safetensors"))
    assert np.array_equal(first, second) and one["mIoU"] == two["mIoU"]
    words = [str(tmp_path / "b.safetensors"), "--out", str(tmp_path / "c.pth"), "--classes", "sky,grass,ball"]
    assert import_weights.main(words) == 0
    three, _ = tried(tmp_path / "c.pth", model=network)
    assert three["mIoU"] == one["mIoU"]
    config = load(make_experiment(tmp_path, data, model=network | {"init": str(tmp_path / "b.safetensors")})).config
    model = build_model("lraspp", 3, "mobilenet_v3_large")
    load_initial_weights(model, config, CLASSES)
    weights = checkpoint.load(tmp_path / "c.pth")["model"]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
