"""The last enlarging of inference, in C++ and by PyTorch, against PyTorch's in float64."""

import pytest
import torch
from torch.nn import functional as F

from model.inference.cpu import enlarge as module
from model.inference.cpu.enlarge import enlarge
from tests.conftest import both_ways, in_layouts_and_threads

way = both_ways(module)


@pytest.mark.parametrize("classes", [1, 5, 19, 150])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((1, 1), (3, 4)),
        ((1, 5), (1, 1)),
        ((4, 7), (4, 7)),
        ((12, 17), (96, 130)),
        ((9, 9), (65, 33)),
        ((20, 30), (7, 11)),
    ],
    ids=str,
)
def test_bilinear_with_aligned_corners_in_any_layout(way, old, new, classes):
    logits = torch.randn(2, classes, *old, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(logits.double(), new, mode="bilinear", align_corners=True)
    for found in in_layouts_and_threads(lambda x: enlarge(x, *new).clone(), logits):
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert (found - expected).abs().max() < 1e-5


def test_without_a_compiler_pytorch_does_it(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(module, "compiled", module.compiled.__wrapped__)
    assert module.kernel.__wrapped__() is None
