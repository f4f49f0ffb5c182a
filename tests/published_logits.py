"""What published code computes from weights that their names and shapes alone decide."""

from types import ModuleType

import torch
from torch import Tensor, nn

from model import build_model
from model.base import SegModel
from model.published import load_published, recognise_family
from tests.published_keys import PARITY, load_fill


def published_case(file: str) -> tuple[ModuleType, dict, SegModel, Tensor]:
    """What compares, the reference, our network with the reference's weights in eval mode, and the input."""
    fill = load_fill()
    golden = fill.load_golden(PARITY / f"{file}.npz")
    weights = fill.state_dict_for(golden)
    weights |= {key[7:]: torch.from_numpy(golden[key]) for key in golden if key.startswith("tensor:")}
    found = recognise_family(weights)
    network = build_model(found.model, found.num_classes, found.backbone, **found.options).eval()
    load_published(network, weights)
    return fill, golden, network, fill.make_input(*golden["input_hw"])


def eval_norms(network: nn.Module) -> nn.Module:
    """The network in training mode, but for norms and dropout."""
    for module in network.modules():
        module.training = not isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.Dropout, nn.Dropout2d))
    return network
