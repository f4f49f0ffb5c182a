"""Exported files give the network's own logits, say what they are, and are refused where they do not."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model import build_model
from model.backbone import BACKBONES
from model.inference import formats
from model.inference.export import missing
from tests.conftest import CLASSES, COLORS, failure, make_experiment
from tool import export, test
from tool.shared.network import rebuild
from tool.shared.published import read_ours
from util import checkpoint
from util.checkpoint.facts import Facts

MEAN, STD = (90.0, 91.0, 92.0), (80.0, 81.0, 82.0)
SIZE = (40, 56)
needs = pytest.mark.skipif(missing("onnx", "onnxscript", "onnxruntime", "openvino") is not None, reason="extra export")


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A checkpoint that sees B, G, R and has an output for void."""
    monkeypatch.setitem(BACKBONES, "tiny", "tests.model.tiny.Tiny")
    torch.manual_seed(0)
    model = build_model("fcn", 4, "tiny", dropout=0.0)
    facts = Facts("custom", (*CLASSES, "void"), (*COLORS, (0, 0, 0)), None, MEAN, STD, "bgr", {"window": list(SIZE)})
    path = tmp_path / "w.pth"
    checkpoint.save(path, {"model": model.state_dict(), "spec": model.spec, **facts.entries(), "optimizer": [1.0]})
    return path


def by_hand(file, image: torch.Tensor) -> torch.Tensor:
    """Logits of uint8 R, G, B pictures, the output for void left out."""
    state = checkpoint.load(file)
    model = build_model("fcn", 4, "tiny", dropout=0.0)
    model.load_state_dict(state["model"])
    x = (image.float() - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
    with torch.no_grad():
        return model.eval()(x.flip(1))["out"][:, :3]


def pictures(count: int, size=SIZE) -> torch.Tensor:
    coarse = torch.rand(count, 3, 5, 7, generator=torch.Generator().manual_seed(1)) * 255
    return F.interpolate(coarse, size, mode="bilinear").to(torch.uint8)


@needs
def test_an_onnx_file_stands_alone(file, tmp_path, capsys):
    import onnxruntime

    assert export.main([str(file), "--to", "onnx", "--out", str(tmp_path / "net.onnx")]) == 0
    assert "equal classes" in "".join(capsys.readouterr()) and not list(tmp_path.glob(".export*"))
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (source,), (target,) = session.get_inputs(), session.get_outputs()
    assert (source.name, source.type, source.shape[1:]) == ("image", "tensor(float)", [3, *SIZE])
    assert (target.name, target.shape[1:]) == ("logits", [3, *SIZE])
    known = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert known["classes"] == list(CLASSES) and known["colors"] == [list(color) for color in COLORS]
    assert known["preprocessing"] == {"mean": list(MEAN), "std": list(STD), "channel_order": "rgb"}
    assert known["version"]
    for count in (1, 3):
        image = pictures(count)
        x = (image.numpy() - np.float32(MEAN)[:, None, None]) / np.float32(STD)[:, None, None]
        found = session.run(None, {"image": x.astype(np.float32)})[0]
        np.testing.assert_allclose(found, by_hand(file, image), atol=1e-4)


@needs
@pytest.mark.parametrize("kind", [kind for kind in formats.FORMATS if kind != "tensorrt"])
def test_uint8_of_any_size_to_classes(file, tmp_path, kind):
    out = tmp_path / f"net{formats.FORMATS[kind].suffix}"
    flags = ["--dynamic", "--with-preprocessing", "--argmax"]
    assert export.main([str(file), "--to", kind, *flags, "--out", str(out)]) == 0
    assert (kind == "onnx") != out.with_name(f"{out.name}.json").exists()
    run = formats.FORMATS[kind].run(out)
    for count, size in ((1, (48, 80)), (2, (33, 47))):
        image = pictures(count, size)
        found = run(image)
        assert found.dtype == torch.uint8 and found.shape == (count, *size)
        assert (found == by_hand(file, image).argmax(1)).double().mean() > 0.999


@needs
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_int8_is_of_a_quarter_of_the_size(file, tmp_path, data, kind):
    import onnx

    out = tmp_path / f"net{formats.FORMATS[kind].suffix}"
    flags = ["--int8", str(data / "image"), "--pictures", str(data / "image"), "--force"]
    assert export.main([str(file), "--to", kind, *flags, "--out", str(out)]) == 0
    form, facts = formats.read_facts(out)
    assert form.precision == "int8" and form.size == SIZE
    if kind == "onnx":
        types = {tensor.data_type for tensor in onnx.load(out).graph.initializer if len(tensor.dims) == 4}
        assert types == {onnx.TensorProto.INT8}
    image = pictures(2)
    x = (image.float() - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
    found, expected = formats.ExportedFile(out, form, facts["spec"])(x)["out"], by_hand(file, image)
    assert 0 < (found - expected).abs().max() < 0.2 * expected.abs().max()


@needs
def test_half_is_compared_too(file, tmp_path):
    out = tmp_path / "net.onnx"
    assert export.main([str(file), "--to", "onnx", "--half", "--force", "--out", str(out)]) == 0
    plain = tmp_path / "plain.onnx"
    assert export.main([str(file), "--to", "onnx", "--out", str(plain)]) == 0
    assert out.stat().st_size < 0.7 * plain.stat().st_size


@needs
def test_a_file_that_differs_is_not_kept(file, tmp_path, capsys, monkeypatch):
    run = formats.ExportedFile.__call__
    monkeypatch.setattr(formats.ExportedFile, "__call__", lambda *args: {"out": run(*args)["out"] * 1.01})
    out = tmp_path / "net.onnx"
    words = [str(file), "--to", "onnx", "--out", str(out)]
    error = failure(capsys, export.main, words)
    assert "its logits differ by 1.0e-02" in error and "--force" in error and not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]
    assert export.main([*words, "--force"]) == 0 and out.exists()


class Jumps(torch.nn.Module):
    """One class where a picture's pixel is the largest of its four neighbours, as in unpooling, another elsewhere."""

    def forward(self, x):
        largest, where = F.max_pool2d(x.mean(1, keepdim=True), 2, return_indices=True)
        out = F.max_unpool2d(largest, where, 2)
        return {"out": torch.cat([x.new_ones(out.shape), out / 4], 1)}


@pytest.mark.fast
def test_what_a_network_jumps_by_itself_is_no_fault_of_the_file():
    """A file that takes the last of four equal pixels and the network the first: by hand, both are right."""
    network, even = Jumps(), torch.full((1, 3, 8, 8), 2.0)

    class File:
        gives_classes, added = False, 0.0

        def __call__(self, x):
            return {"out": network(x.flip(-1, -2))["out"].flip(-1, -2) + self.added}

    compared = export.compare(network, File(), [even], 2)
    assert compared.difference == pytest.approx(0.5) and compared.own == pytest.approx(0.5)
    assert compared.equal == 1.0 and compared.refused("float32") is None
    slope = torch.linspace(1, 2, 3 * 64).view(1, 3, 8, 8)
    compared = export.compare(network, File(), [slope], 2)
    assert compared.difference == 0.0 and compared.own is None
    File.added = 0.01
    compared = export.compare(network, File(), [slope], 2)
    assert compared.own is None and "differ by 1.0e-02" in compared.refused("float32")


@needs
def test_an_export_is_scored_like_its_checkpoint(file, tmp_path, data, capsys):
    def score(path, *overrides):
        experiment = make_experiment(tmp_path, data, model={"name": "fcn", "backbone": "tiny"})
        words = ["--config", experiment, "--exp", tmp_path / path.stem, "--checkpoint", path, *overrides]
        assert test.main([str(word) for word in words]) == 0
        (metrics,) = (tmp_path / path.stem).rglob("metrics.json")
        return json.loads(metrics.read_text())

    out = tmp_path / "net.onnx"
    assert export.main([str(file), "--to", "onnx", "--out", str(out)]) == 0
    window = f"test.window=[{SIZE[0]},{SIZE[1]}]"
    plain, exported = score(file, window), score(out, window)
    assert exported["mIoU"] == pytest.approx(plain["mIoU"], abs=1e-3)
    assert exported["protocol"]["engine"]["name"] == "onnxruntime"
    assert exported["protocol"]["window"] == plain["protocol"]["window"] == list(SIZE)
    whole = ["--config", str(tmp_path / "small.yaml"), "--checkpoint", str(out)]
    error = failure(capsys, test.main, whole)
    assert "is for pictures of 40x56" in error and "--size 64 96" in error and window in error
    assert "is exported: leave out" in failure(capsys, test.main, [*whole, window, "test.engine=openvino"])


def test_weights_are_read_again_at_every_door(file, tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    assert export.main([str(file), "--to", "weights", "--out", str(out)]) == 0
    before, after = checkpoint.load(file), read_ours(out)
    assert "optimizer" not in after
    assert {key: after[key] for key in before.keys() - {"model", "optimizer"}} == {
        key: before[key] for key in before.keys() - {"model", "optimizer"}
    }
    assert all(torch.equal(after["model"][name], value) for name, value in before["model"].items())
    half = tmp_path / "half.safetensors"
    assert export.main([str(file), "--to", "weights", "--half", "--out", str(half)]) == 0
    assert half.stat().st_size < 0.6 * out.stat().st_size
    assert next(rebuild(read_ours(half), half).parameters()).dtype == torch.float32
    assert "--argmax: not for --to weights" in failure(capsys, export.main, [str(file), "--to", "weights", "--argmax"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "onnx", "--out", "net.xml"], "a file of onnx ends in .onnx"),
        (["--to", "onnx", "--size", "0", "4"], "a picture has at least one pixel"),
        (["--to", "onnx", "--int8", "no/such/folder"], "no/such/folder: no such folder"),
        (["--to", "torchscript", "--half", "--int8", "x"], "not allowed with"),
        (["--to", "coreml"], "invalid choice"),
    ],
)
def test_mistakes_are_one_line(file, capsys, words, message):
    assert message in failure(capsys, export.main, [str(file), *words])


@pytest.mark.skipif(missing("tensorrt") is None, reason="TensorRT is installed")
def test_tensorrt_says_what_to_install(file, capsys):
    error = failure(capsys, export.main, [str(file), "--to", "tensorrt"])
    assert "tensorrt: not installed: tensorrt" in error and "pip install tensorrt" in error


@needs
def test_a_file_of_others_is_refused_by_name(tmp_path, capsys):
    import onnx

    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "net.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no protobuf")
    (tmp_path / "net.xml").write_text("<net/>")
    for name in ("net.onnx", "bad.onnx", "net.xml"):
        assert name in failure(capsys, test.main, ["--checkpoint", str(tmp_path / name), "data.root=x"])
