"""Devices are not mixed, and nothing is read on the host: told by tensors that are on a GPU by name alone.

PyTorch's fake tensors have shapes and a device, but no numbers. An operation on a CPU's and a GPU's tensor raises, and
so does whatever needs a value. Backward passes need a real GPU.
"""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import build_model
from util.loss import LOSSES, SegLoss
from util.score.coarse import CoarsePredictor
from util.score.metric import ConfusionMatrix
from util.score.predict import Predictor

CLASSES, GPU = 5, torch.device("cuda", 0)
NETWORKS = [
    ("fcn", "resnet18"),
    ("pspnet", "resnet18"),
    ("semanticflow", "dfnet_v1"),
    ("semanticflow", "torchvision/resnet18"),
    ("semanticflow_lite", "stdc1"),
    ("sketchfill", "mobilenet_v2"),
]
NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException)


class Copies(TorchDispatchMode):
    """Copies between devices, for which the host waits unless the memory is page-locked."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            self.found += [str(function)] if len({tensor.device for tensor in tensors}) > 1 else []
        return result


def zeros(*shape, dtype=None):
    return torch.zeros(shape, dtype=dtype, device=GPU)


@pytest.fixture
def copies():
    """Tensors are fake inside of a test; the copies that it makes between devices."""
    with torch.backends.cudnn.flags(enabled=False), FakeTensorMode(), Copies() as copies:
        yield copies


def test_what_would_fail_on_a_gpu_is_found(copies):
    values = zeros(3)
    with pytest.raises(RuntimeError, match="device"):
        values + torch.zeros(3)
    with pytest.raises(NEEDS_VALUES):
        values.sum().item()
    torch.zeros(3).to(GPU)
    assert len(copies.found) == 1


@pytest.mark.parametrize("name, backbone", NETWORKS, ids=str)
def test_networks(copies, name, backbone):
    with GPU:
        network = build_model(name, CLASSES, backbone)
    copies.found.clear()
    x = zeros(2, 3, 65, 97)
    for logits in (*network(x).values(), network.eval()(x)["out"]):
        assert logits.device == GPU and logits.shape == (2, CLASSES, 65, 97)
    assert not copies.found


@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.0, 1.0, 1.0)], ids=["equal", "weighted"])
@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"lovasz"}))  # which has to know what classes there are
def test_losses(copies, name, weights):
    loss = SegLoss({"out": 1.0, "se": 0.5}, CLASSES, class_weights=weights, name=name).to(GPU)
    copies.found.clear()
    label = zeros(2, 33, 40, dtype=torch.uint8)
    outputs = {"out": zeros(2, CLASSES, 33, 40), "se": zeros(2, CLASSES)}
    total, terms = loss(outputs, label)
    assert total.device == terms["se"].device == GPU and total.shape == () and not copies.found


@pytest.mark.parametrize("settings", [{}, {"window": (20, 20)}, {"scales": (0.5, 1.0), "flip": True}], ids=str)
@pytest.mark.parametrize("kind", [Predictor, CoarsePredictor])
def test_predictions(copies, monkeypatch, kind, settings):
    """But for whether the network's output is finite, which the host asks once a picture (once a scale)."""
    monkeypatch.setattr(torch, "isfinite", lambda value: True)
    with GPU:
        network, image = build_model("fcn", CLASSES, "resnet18"), zeros(3, 48, 64, dtype=torch.uint8)
    monkeypatch.setattr(network, "to", lambda device: network)  # it is there; fake parameters cannot be swapped
    predictor = kind(network, CLASSES, (0, 0, 0), (1, 1, 1), amp=torch.bfloat16, **settings)
    copies.found.clear()
    probabilities, classes = predictor.probabilities(image), predictor(image)
    assert probabilities.device == classes.device == GPU and classes.dtype == torch.uint8
    assert probabilities.shape == (CLASSES, 48, 64) and classes.shape == (48, 64) and not copies.found


def test_predictions_are_counted_where_they_are(copies):
    """The check of the values is what reads them."""
    confusion = ConfusionMatrix(CLASSES, device=GPU)
    with pytest.raises(NEEDS_VALUES):
        confusion.update(zeros(20, 30, dtype=torch.uint8), zeros(20, 30, dtype=torch.uint8))


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name, backbone", NETWORKS, ids=str)
def test_on_a_gpu_logits_and_gradients_are_those_of_the_cpu(name, backbone, layout):
    torch.manual_seed(0)
    network, x, found = build_model(name, CLASSES, backbone).eval(), torch.randn(2, 3, 65, 97), []
    for device in (torch.device("cpu"), GPU):
        network.to(device, memory_format=layout).zero_grad()
        logits = network(x.to(device, memory_format=layout))["out"]
        logits.square().mean().backward()
        found.append([logits.detach().cpu(), *(p.grad.cpu() for p in network.parameters() if p.grad is not None)])
    for expected, value in zip(*found, strict=True):
        assert (value - expected).norm() <= 0.02 * expected.norm()
