"""Every network as an exported file: the network's own logits at sizes and numbers that the exporter did not see."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model import MODELS
from model.backbone import BACKBONES
from model.inference import formats
from model.inference.export import _AnyPool, missing
from model.table import ModelError
from tests.model.test_model import ONE_SIZE, SIZES, small

NEEDS = pytest.mark.skipif(missing("onnx", "onnxscript", "onnxruntime", "openvino") is not None, reason="extra export")
SAMPLE = ("semanticflow",)  # of the ordinary tier: pooling of any size, and flow
# Traced for ONNX: the exporter cannot tell the sign of a size in ICNet, and wants heads in OCR's attention.
TRACED = ("icnet", "icnet_ppm", "hrnet_ocr")


def check(name: str, kind: str, file, size: tuple[int, int] | None, bound: float = 1e-4) -> str:
    """Compare a small network's file with it; return how it was exported."""
    torch.manual_seed(0)
    network = small(name).eval()
    how = formats.write(network, formats.Form(size), kind, file)
    run = formats.FORMATS[kind].run(file)
    for shape in [(2, *size), (1, *size)] if size else [(1, 72, 96), (3, 97, 65)]:
        x = torch.randn(shape[0], 3, *shape[1:])
        with torch.no_grad():
            expected, found = network(x)["out"], run(x)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < bound * expected.abs().max()
    return how


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", "tests.model.tiny.Tiny")


@pytest.mark.fast
@pytest.mark.parametrize("cells", [1, 2, 3, 6, (2, 5), (None, 4)])
@pytest.mark.parametrize("size", [(9, 11), (4, 30)])
def test_pooling_of_any_size_is_adaptive_pooling(cells, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(_AnyPool(cells)(x), F.adaptive_avg_pool2d(x, cells))


@NEEDS
@pytest.mark.parametrize("name", SAMPLE)
def test_onnx_files_of_any_size(name, tmp_path):
    assert "torch.export" in check(name, "onnx", tmp_path / "net.onnx", None)


@NEEDS
@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in formats.FORMATS if kind != "tensorrt"])
@pytest.mark.parametrize("name", MODELS)
def test_every_network_in_every_format(name, kind, tmp_path):
    size, file = SIZES[0] if name in ONE_SIZE else None, tmp_path / f"net{formats.FORMATS[kind].suffix}"
    assert ("tracing, since" in check(name, kind, file, size)) == (kind == "onnx" and name in TRACED)


@NEEDS
def test_a_network_of_one_size_says_so(tmp_path):
    for name in ONE_SIZE:
        with pytest.raises(ModelError, match="picture"):
            formats.write(small(name).eval(), formats.Form(None), "onnx", tmp_path / "net.onnx")


class ByValue(nn.Module):
    """A network that asks a tensor's value, which torch.export cannot follow and tracing can."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        y = self.layer(x)
        return {"out": y if y.mean() < 1e9 else -y}


@NEEDS
def test_what_torch_export_cannot_is_traced_and_the_reason_said(tmp_path):
    network, x = ByValue().eval(), torch.randn(3, 3, 20, 30)
    how = formats.write(network, formats.Form(None), "onnx", tmp_path / "net.onnx")
    assert "by tracing, since torch.export cannot: " in how
    with torch.no_grad():
        torch.testing.assert_close(formats.run_onnx(tmp_path / "net.onnx")(x), network(x)["out"], rtol=1e-4, atol=1e-5)
