"""Networks made ready for inference give what they gave before; what costs nothing in evaluation; one graph."""

import copy

import pytest
import torch
from torch import nn
from torch._inductor.cudagraph_trees import CUDAGraphTreeManager

from model import build_model
from model.base import SegModel
from model.inference.fold import fold_norms
from model.inference.optimize import optimize_for_inference
from model.layer.basic import ConvBNReLU

CLASSES = 5
SAMPLE = ("fcn", "pspnet", "semanticflow", "semanticflow_lite", "sketchfill")
NETWORKS = [(name, backbone) for name in SAMPLE for backbone in ("resnet18", "timm/mobilenetv3_small_050")]
NETWORKS += [("sketchfill", "mobilenet_v2"), ("semanticflow", "stdc1"), ("fcn", "timm/convnext_atto")]
ROUNDING = 2e-4  # of the largest logit
HEADS_OF_TRAINING = ("aux", "dsn")


def trained(network: nn.Module) -> nn.Module:
    """Norms with the statistics and factors that a training might leave; a fresh norm does nothing."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    return network


def logits(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(x)["out"]


@pytest.mark.parametrize(("name", "backbone"), NETWORKS)
def test_coarse_logits_are_those_that_forward_enlarges(name, backbone):
    network, x = trained(build_model(name, CLASSES, backbone)).eval(), torch.randn(2, 3, 65, 129)
    for model in (network, optimize_for_inference(network)):
        with torch.no_grad():
            coarse = model.coarse(x)
        assert coarse.shape[2] < 65
        enlarged = nn.functional.interpolate(coarse, (65, 129), mode="bilinear", align_corners=True)
        assert torch.allclose(enlarged, logits(model, x), rtol=1e-4, atol=1e-4 * coarse.abs().max())


@pytest.mark.parametrize(("name", "backbone"), NETWORKS)
def test_same_logits_without_norms(name, backbone):
    network = trained(build_model(name, CLASSES, backbone)).train()
    before = copy.deepcopy(network.state_dict())
    fast = optimize_for_inference(network)
    assert network.training and all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    left = [k for k, m in fast.network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert [k for k in left if not k.startswith(HEADS_OF_TRAINING)] == []
    assert fast.spec == network.spec and not any(p.requires_grad for p in fast.parameters())
    network.eval()
    for size in ((65, 97), (33, 47)):
        x = torch.randn(2, 3, *size)
        expected, found = logits(network, x), fast(x)["out"]
        assert (found.argmax(1) == expected.argmax(1)).float().mean() >= 0.999
        assert (found - expected).abs().max() < ROUNDING * expected.abs().max()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_a_folded_convolution_is_the_norm_of_its_output(bias, affine):
    pair = trained(nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4, affine=affine))).eval().double()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    y, norm = pair[0](x), pair[1]
    expected = (y - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
    if affine:
        expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    assert fold_norms(pair) == 1
    torch.testing.assert_close(pair(x), expected, rtol=1e-12, atol=1e-12)


class Odd(nn.Module):
    """A convolution and a norm in an arrangement that cannot be folded."""

    def __init__(self, arrangement: str):
        super().__init__()
        self.conv, self.norm, self.arrangement = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), arrangement
        self.track = nn.BatchNorm2d(3, track_running_stats=False)
        self.again = nn.Conv2d(3, 3, 1)
        self.again.weight = nn.Parameter(self.conv.weight[:, :, :1, :1].clone())

    def forward(self, x):
        y = self.conv(x)
        return {
            "read by another": lambda: self.norm(y) + y,
            "an output itself": lambda: {"out": self.norm(y), "raw": y},
            "convolution twice": lambda: self.norm(y) + self.conv(x + 1),
            "norm twice": lambda: self.norm(y) + self.norm(self.again(x)),
            "norm of a sum": lambda: self.norm(y + x),
            "norm of a view": lambda: self.norm(y.flip(2)),
            "norm first": lambda: self.conv(self.norm(x)),
            "batch statistics": lambda: self.track(y),
        }[self.arrangement]()


@pytest.mark.parametrize(
    "arrangement",
    [
        "read by another",
        "an output itself",
        "convolution twice",
        "norm twice",
        "norm of a sum",
        "norm of a view",
        "norm first",
        "batch statistics",
    ],
)
def test_what_cannot_be_folded_stays(arrangement):
    network = trained(Odd(arrangement)).eval()
    x = torch.randn(1, 3, 8, 8)
    expected = network(x)
    assert fold_norms(network, x) == 0
    torch.testing.assert_close(network(x), expected, rtol=0, atol=0)


def test_a_shared_weight_is_not_folded():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)).eval()
    network[2].weight = network[0].weight
    assert fold_norms(network) == 0


def test_stored_half_precision_weights_are_those_of_autocast():
    network = trained(build_model("semanticflow", CLASSES, "resnet18")).eval()
    fast, half = optimize_for_inference(network), optimize_for_inference(network, torch.bfloat16)
    x, folded = torch.randn(1, 3, 65, 97), copy.deepcopy(network)
    fold_norms(folded)
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(folded.to(memory_format=torch.channels_last), x)
        surrounded = fast(x)["out"]
    torch.testing.assert_close(surrounded, fast(x)["out"], rtol=0, atol=0)  # a network keeps the precision it has
    found = half(x)["out"]
    assert found.dtype == torch.float32 and torch.isfinite(found).all()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="amp must be None"):
        optimize_for_inference(network, torch.float64)


def called(network: nn.Module) -> set[str]:
    """Names of the layers with parameters that run on a picture."""
    names = set()
    for name, module in network.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(lambda *_, name=name: names.add(name))
    with torch.no_grad():
        network(torch.randn(2, 3, 64, 96))
    return names


@pytest.mark.parametrize("name", SAMPLE)
def test_heads_of_training_cost_nothing_in_evaluation(name):
    options = {"deep_supervision": True} if name.startswith("semanticflow") else {}
    network = build_model(name, CLASSES, "resnet18", **options)
    every = {n for n, m in network.named_modules() if any(True for _ in m.parameters(recurse=False))}
    heads = {n for n in every if n.startswith(HEADS_OF_TRAINING)}
    assert heads and called(copy.deepcopy(network).train()) == every
    assert called(network.eval()) == every - heads


@pytest.mark.parametrize("name", SAMPLE)
def test_training_compiles_as_one_graph(name):
    options = {"deep_supervision": True} if name.startswith("semanticflow") else {}
    network = build_model(name, CLASSES, "resnet18", **options).train()
    x = torch.randn(2, 3, 33, 47)
    torch.compiler.reset()
    twin = copy.deepcopy(network)
    torch.manual_seed(0)
    expected = twin(x)
    torch.manual_seed(0)
    found = torch.compile(network, fullgraph=True, backend="eager")(x)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


class Tiny(SegModel):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(ConvBNReLU(3, 8, stride=2), nn.Conv2d(8, CLASSES, 1))

    def forward_features(self, x):
        return [self.body(x)]

    def decode(self, features):
        return {"out": features[0]}


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_compiled_networks_keep_their_own_weights_and_take_any_size(amp):
    torch.compiler.reset()
    networks = [trained(Tiny()).eval(), Tiny().eval()]
    compiled = [optimize_for_inference(network, amp, compile=True) for network in networks]
    tolerance = 1e-5 if amp is None else 0.05
    for size in ((32, 48), (33, 47), (40, 40), (64, 80), (48, 32)):
        x = torch.randn(1, 3, *size)
        for network, fast in zip(networks, compiled, strict=True):
            torch.testing.assert_close(fast(x)["out"], logits(network, x), rtol=tolerance, atol=tolerance)


def test_many_sizes_do_not_compile_for_ever():
    torch.compiler.reset()
    graphs = torch._dynamo.testing.CompileCounter()
    network = torch.compile(build_model("fcn", CLASSES, "resnet18").eval(), backend=graphs)
    with torch.no_grad():
        for height in range(32, 128, 8):
            network(torch.randn(1, 3, height, 160))
    assert graphs.frame_count <= 4


@pytest.mark.gpu
@pytest.mark.parametrize("name", SAMPLE)
def test_on_a_gpu_half_precision_in_one_graph_agrees_with_float32(name, monkeypatch):
    replays, execute = [], CUDAGraphTreeManager.execute_node
    monkeypatch.setattr(CUDAGraphTreeManager, "execute_node", lambda *args: replays.append(1) or execute(*args))
    network = trained(build_model(name, 19, "resnet18")).eval().cuda()
    fast = optimize_for_inference(network, torch.bfloat16, compile=True)
    for _ in range(4):  # compiled, recorded, and then replayed
        x = torch.randn(1, 3, 512, 1024, device="cuda")
        kept = fast(x)["out"]
        assert (kept.argmax(1) == logits(network, x).argmax(1)).float().mean() > 0.9
    assert len(replays) == 2
    copied = kept.clone()
    fast(torch.randn_like(x))
    assert torch.equal(kept, copied)  # not memory of the graph


@pytest.mark.gpu
def test_on_a_gpu_what_was_recorded_for_one_size_is_right_for_others():
    network = trained(build_model("semanticflow", 19, "resnet18")).eval().cuda()
    fast = optimize_for_inference(network, torch.bfloat16, compile=True)
    for size in 3 * [(512, 1024)] + [(256, 512), (320, 400), (512, 1024)]:
        x = torch.randn(1, 3, *size, device="cuda")
        assert (fast(x)["out"].argmax(1) == logits(network, x).argmax(1)).float().mean() > 0.9
