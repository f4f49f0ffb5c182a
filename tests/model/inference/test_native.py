"""Memory of inference on a CPU, used again only when nobody holds it; our convolutions in a network as PyTorch's."""

import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.inference.cpu.enlarge import enlarge
from model.inference.cpu.native import Results, bounds, new_maps
from model.inference.cpu.split import amx_is_there, use_split
from model.inference.cpu.winograd import use_winograd


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 19, 300, 500), (0, 4, 3, 3)])
def test_maps_are_channels_last_and_begin_a_line_of_the_cache(shape):
    for maps in (new_maps(*shape), Results().take(*shape)):
        assert maps.shape == shape and maps.dtype == torch.float32
        assert maps.is_contiguous(memory_format=torch.channels_last) and maps.data_ptr() % 64 == 0


def test_memory_is_used_again_only_when_nothing_refers_to_it():
    results = Results()
    first = results.take(1, 4, 50, 60)
    place, view = first.data_ptr(), first[0, 1:, 3]
    del first
    gc.collect()
    second = results.take(1, 4, 50, 60)
    assert second.data_ptr() != place  # a view of the first is left
    del view
    third = results.take(2, 2, 60, 50)  # as many numbers
    assert third.data_ptr() == place
    del second, third
    assert len(results.free) == 1  # more is not kept
    other = results.take(1, 4, 50, 61)
    del other
    assert list(results.free) == [4 * 50 * 61]


def test_results_that_are_held_keep_their_values():
    torch.manual_seed(0)
    pictures = [torch.randn(1, 3, 6, 9) for _ in range(4)]
    held = [enlarge(picture, 11, 17) for picture in pictures]
    for picture, found in zip(pictures, held, strict=True):
        expected = F.interpolate(picture, (11, 17), mode="bilinear", align_corners=True)
        torch.testing.assert_close(found, expected)


def test_limits_that_are_not_given_are_infinite():
    assert [bounds(limits) for limits in ((), (0.0,), (0.0, 6.0))] == [
        (-float("inf"), float("inf")),
        (0.0, float("inf")),
        (0.0, 6.0),
    ]


@pytest.mark.parametrize(
    ("use", "tolerance"),
    [
        (use_winograd, 1e-5),
        pytest.param(
            use_split, 1e-4, marks=pytest.mark.skipif(not amx_is_there(), reason="needs a processor with AMX")
        ),
    ],
)
def test_one_graph_with_what_surrounds_it(use, tolerance):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.Sigmoid()).eval().requires_grad_(False)
    x = torch.randn(1, 24, 9, 13)
    expected = network(x)
    assert use(network) == 1
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=0, atol=tolerance)
