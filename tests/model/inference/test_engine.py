"""Exported networks give the logits of the network itself; the bench that compares them."""

import importlib.util
import json

import pytest
import torch
from torch import nn

from model import build_model
from model.inference import export as engine
from tests.conftest import make_experiment
from tool.bench import main
from tool.bench.report import Report, read_report
from util.score.predict import Predictor

NETWORKS = (("semanticflow", "resnet18"), ("sketchfill", "mobilenet_v2"), ("pspnet", "timm/mobilenetv3_small_050"))
SIZE = (72, 88)  # no multiple of the pyramid's 1, 2, 3 and 6 cells


def installed(*packages: str):
    return pytest.mark.skipif(engine.missing(*packages) is not None, reason="needs the extra export")


@pytest.mark.parametrize("cells", [1, 2, 3, 6, (2, 5)])
def test_pooling_for_export_is_adaptive_pooling(cells):
    x = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    found = engine._FixedPool((9, 11), cells).double()(x)
    torch.testing.assert_close(found, nn.AdaptiveAvgPool2d(cells)(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "backbone"), NETWORKS)
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(engine.onnx_engine, marks=installed("onnx", "onnxruntime")),
        pytest.param(engine.openvino_engine, marks=installed("openvino")),
    ],
)
def test_an_engine_gives_the_networks_logits(make, name, backbone):
    torch.manual_seed(0)
    network = build_model(name, 5, backbone).eval()
    x = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        expected = network(x)["out"]
    found = make(network, SIZE, 2)(x)
    assert found.dtype == torch.float32 and found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=installed(*packages)) for name, packages in engine.ENGINES.items()]
)
@pytest.mark.parametrize("settings", [{"window": (40, 56), "scales": (0.75, 1.0)}, {}], ids=["windows", "whole"])
def test_a_predictor_gives_torchs_classes_through_an_engine(name, settings):
    torch.manual_seed(0)
    network = build_model("fcn", 5, "resnet18").eval()
    exported = engine.ExportedNetwork(network, name)
    image = torch.randint(0, 256, (3, 60, 90), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    settings = {"mean": (124, 116, 104), "std": (58, 57, 57), "flip": True, "channels_last": True, **settings}
    expected = Predictor(network, 5, **settings)
    found = Predictor(exported, 5, device="cpu", **settings)
    for picture in (image, image[:, :, 20:]) if "window" in settings else (image, image):
        assert (found(picture) == expected(picture)).double().mean() >= 0.999
        assert torch.allclose(found.probabilities(picture), expected.probabilities(picture), atol=1e-3)
    said = exported.describe()
    assert said["name"] == name and said["batches"] == ([[4, 40, 56]] if "window" in settings else [[2, 60, 90]])
    assert exported.forward_passes > 2 and network.training is False


def test_pictures_of_too_many_sizes_are_refused(monkeypatch):
    monkeypatch.setattr(engine, "missing", lambda *packages: None)
    monkeypatch.setattr(engine, "MOST_SIZES", 2)
    monkeypatch.setattr(engine, "onnx_engine", lambda network, size, batch: lambda x: network(x)["out"])
    exported = engine.ExportedNetwork(build_model("fcn", 5, "resnet18"), "onnxruntime")
    for width in (32, 40, 32):
        assert exported(torch.zeros(1, 3, 32, width))["out"].shape == (1, 5, 32, width)
    with pytest.raises(ValueError, match="more than 2 sizes.*test.window"):
        exported(torch.zeros(1, 3, 32, 48))


def test_what_an_engine_cannot_do_is_refused(monkeypatch):
    monkeypatch.setattr(engine, "missing", lambda *packages: None)
    with pytest.raises(ValueError, match="does not compute in torch.bfloat16"):
        engine.ExportedNetwork(nn.Identity(), "onnxruntime", torch.bfloat16)
    monkeypatch.setattr(engine, "missing", lambda *packages: "not installed: openvino (pip install -e .[export])")
    with pytest.raises(ValueError, match=r"test.engine=openvino: not installed: openvino \(pip install"):
        engine.ExportedNetwork(nn.Identity(), "openvino")


def test_what_is_not_installed_is_named():
    assert engine.missing("torch") is None
    assert "no_such_engine (pip install" in engine.missing("torch", "no_such_engine")


@pytest.fixture
def bench(tmp_path, data, monkeypatch):
    """Runs `tool.bench infer` on the shared small experiment; the report that it writes."""
    path = make_experiment(tmp_path, data)
    monkeypatch.setattr("tool.bench.experiment.find_experiment", lambda *_: path)

    def run(*arguments: str) -> Report:
        file = tmp_path / "infer.json"
        assert (
            main(["infer", "custom", "small", "--size", "33", "47", "--rounds", "2", "--json", str(file), *arguments])
            == 0
        )
        return read_report(file)[0]

    return run


def test_the_bench_compares_with_the_plain_network(bench, capsys):
    report = bench("--engines", "folded,channels_last,optimised", "--batch", "2", "--grow")
    names = ["eager float32", "channels_last", "folded", "optimised (test.optimize=fold)", "bf16 optimised"]
    first = report.tables[0]
    assert [row.name for row in first.rows] == names
    assert first.rows[0].ratio == 1 and all(row.median > 0 for row in first.rows)
    for name in names[:4]:
        assert float(first.facts[name]["equal classes"].rstrip("%")) >= 99.9
        assert float(first.facts[name]["difference"]) < 1e-4
    assert any("random" in note for note in report.notes) and any("norms folded" in note for note in report.notes)
    assert [table.title for table in report.tables[-2:]] == ["2 x 33 x 47", "4 x 33 x 47"]
    assert "ms a picture" in capsys.readouterr().out


def test_an_engine_that_is_not_installed_is_told_not_measured(bench, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    report = bench("--engines", "openvino")
    assert [row.name for row in report.tables[0].rows] == ["eager float32"]
    assert sum("not installed: openvino" in note for note in report.notes) == 2


def test_wrong_numbers_are_refused(bench):
    with pytest.raises(ValueError, match="--batch and --threads"):
        bench("--batch", "0")


@pytest.mark.gpu
def test_the_gpus_contenders_agree(bench):
    table = bench("--size", "256", "512").tables[0]
    assert {"TF32", "bf16 compiled", "fp16 compiled"} <= {row.name for row in table.rows}
    assert all(float(facts["equal classes"].rstrip("%")) > 95 for facts in table.facts.values())
    assert json.dumps(table.facts)
