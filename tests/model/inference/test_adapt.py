"""A network that sees B, G, R, and one with more outputs than the data have classes."""

import pytest
import torch

from model import build_model
from model.inference.adapt import adapt

pytestmark = pytest.mark.fast


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_model("fcn", 4, "resnet18", auxiliary=False).eval()


def test_channels_and_classes_are_put_in_order(network):
    x = torch.randn(2, 3, 33, 40)
    adapted = adapt(network, "bgr", (2, 0, 1))
    with torch.no_grad():
        expected = network(x[:, [2, 1, 0]])
        assert torch.equal(adapted(x)["out"], expected["out"][:, [2, 0, 1]])
        assert torch.equal(adapted.coarse(x), network.coarse(x[:, [2, 1, 0]])[:, [2, 0, 1]])
    assert adapted.gives_coarse == network.gives_coarse
    assert not any(name.startswith("outputs") for name in adapted.state_dict())


def test_nothing_is_put_around_a_network_that_fits(network):
    assert adapt(network) is network and adapt(network, "rgb", None) is network
    x = torch.randn(1, 3, 33, 40)
    with torch.no_grad():
        assert torch.equal(adapt(network, "bgr")(x)["out"], network(x.flip(1))["out"])
