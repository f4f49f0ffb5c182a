"""What published code computes from weights that their names and shapes alone decide."""

import importlib.util
from types import ModuleType

import pytest
from torch import nn

from tests.published_keys import PARITY


def fill_module() -> ModuleType:
    """The module that makes the weights and the input, and compares."""
    if not (PARITY / "fill.py").is_file():
        pytest.skip(f"reference logits not present: no {PARITY / 'fill.py'}")
    spec = importlib.util.spec_from_file_location("fill", PARITY / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def eval_norms(network: nn.Module) -> nn.Module:
    """The network in training mode, but for norms and dropout."""
    for module in network.modules():
        module.training = not isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.Dropout, nn.Dropout2d))
    return network
