"""Losses of boundaries, details and coarse maps against their published arithmetic written out."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from util.loss import SegLoss
from util.loss.boundary import boundaries, boundary, detail, details, near_boundary
from util.loss.pixel import cascade, cross_entropy, ohem_cross_entropy

pytestmark = pytest.mark.fast


@pytest.fixture
def label() -> torch.Tensor:
    """Blocks of four classes and some ignored pixels, (2, 12, 16)."""
    blocks = np.random.RandomState(0).randint(0, 4, (2, 3, 4))
    blocks[0, 2, 1] = 255
    return torch.from_numpy(np.kron(blocks, np.ones((1, 4, 4), np.int64)))


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.from_numpy(2 * np.random.RandomState(1).randn(2, 1, 6, 8)).float()


def edges_of(label: np.ndarray, width: int) -> np.ndarray:
    """Edges of one picture, pixel by pixel, widened by OpenCV."""
    height, wide = label.shape
    edge = np.zeros(label.shape, np.uint8)
    for y in range(height):
        for x in range(wide):
            for dy, dx in ((-1, 0), (0, 1), (1, 1), (1, -1)):
                if 0 <= y + dy < height and 0 <= x + dx < wide:
                    pair = (label[y, x], label[y + dy, x + dx])
                    edge[y, x] |= pair[0] != pair[1] and 255 not in pair
    return cv2.dilate(edge, np.ones((width, width), np.uint8))


@pytest.mark.parametrize("width", [1, 3, 4])
def test_boundaries_are_where_classes_meet(label, width):
    for found, picture in zip(boundaries(label, width=width), label, strict=True):
        assert np.array_equal(found.numpy(), edges_of(picture.numpy(), width))


def test_boundary_loss_balances_both_kinds_of_pixels(label, logits):
    scores = F.interpolate(logits, (12, 16), mode="bilinear", align_corners=True)[:, 0].double()
    truth, valid = boundaries(label), label != 255
    positive, negative = int((truth & valid).sum()), int((~truth & valid).sum())
    total = 0.0
    for score, true, counts in zip(scores.flatten(), truth.flatten(), valid.flatten(), strict=True):
        if counts:
            share = (negative if true else positive) / (positive + negative)
            total -= share * float(torch.log(torch.sigmoid(score if true else -score)))
    assert float(boundary(logits, label)) == pytest.approx(total / (positive + negative), rel=1e-5)


def test_details_by_hand():
    # Two columns of class 0, two of class 2: the Laplacian is positive on the left column of class 2, where three
    # neighbours are 0 (8*2 - 5*2), and in its last column and the rows at the border, outside of which there is 0.
    label = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2]).repeat(1, 8, 1)
    fine = torch.zeros(8, 8, dtype=torch.bool)
    fine[:, 4] = fine[:, 7] = True
    fine[0, 4:] = fine[7, 4:] = True
    # At stride 2 the centres (0, 2, 4, 6) of the window see the same, and each stands for 2x2 pixels.
    coarse = torch.zeros(8, 8, dtype=torch.bool)
    coarse[:, 4:6] = True
    coarse[:2, 4:] = True
    assert torch.equal(details(label)[0], fine | coarse)
    assert torch.equal(details(torch.full((1, 8, 8), 0)), torch.zeros(1, 8, 8, dtype=torch.bool))


def test_detail_loss_is_entropy_plus_dice(label, logits):
    scores = F.interpolate(logits, (12, 16), mode="bilinear", align_corners=True)[:, 0].sigmoid().double()
    truth, valid = details(label), label != 255
    expected = F.binary_cross_entropy(scores[valid], truth[valid].double())
    for score, true, counts in zip(scores, truth, valid, strict=True):
        p, g = score[counts], true[counts].double()
        expected = expected + (1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1)) / 2
    assert float(detail(logits, label)) == pytest.approx(float(expected), rel=1e-5)
    none = torch.randn(2, 1, 6, 8)
    assert float(detail(torch.cat([none, none + logits], 1), label)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("loss", [boundary, detail])
def test_no_valid_pixel_is_zero_and_ignored_ones_take_no_part(loss, label, logits):
    nothing = logits.clone().requires_grad_()
    value = loss(nothing, torch.full_like(label, 255))
    value.backward()
    assert float(value.detach()) == 0 and not nothing.grad.any()
    full = torch.randn(2, 1, 12, 16).bfloat16().requires_grad_()
    loss(full, label.to(torch.uint8)).backward()
    assert full.grad.dtype == torch.bfloat16 and not full.grad[:, 0][label == 255].any() and full.grad.any()


def test_coarse_logits_see_the_nearest_label():
    label = torch.arange(24).view(1, 4, 6)
    logits = torch.randn(1, 24, 2, 3)
    nearest = F.interpolate(label[None].float(), (2, 3), mode="nearest")[0].long()
    assert float(cascade(logits, label)) == pytest.approx(float(cross_entropy(logits, nearest)))


def test_the_network_is_trained_where_it_sees_a_boundary(label):
    out, edge = torch.randn(2, 4, 12, 16, requires_grad=True), torch.randn(2, 1, 12, 16, requires_grad=True)
    near = near_boundary(label, edge, threshold=0.5)
    assert torch.equal(near == 255, (edge[:, 0] <= 0) | (label == 255))
    criterion = SegLoss(
        {"out": 1.0, "boundary": 20.0}, 4, name="ohem", options={"min_kept": 5}, extra={"boundary_aware": 1.0}
    )
    total, terms = criterion({"out": out, "boundary": edge}, label)
    expected = ohem_cross_entropy(out, near_boundary(label, edge), min_kept=5)
    assert float(terms["boundary_aware"]) == pytest.approx(float(expected.detach()))
    parts = terms["out"] + 20 * terms["boundary"] + terms["boundary_aware"]
    assert float(total.detach()) == pytest.approx(float(parts), rel=1e-6)
    with pytest.raises(ValueError, match="boundary_aware reads the output 'boundary'"):
        criterion({"out": out}, label)
    with pytest.raises(ValueError, match=r"extra: unknown loss 'boundary_awar'; did you mean 'boundary_aware'"):
        SegLoss({"out": 1.0}, 4, extra={"boundary_awar": 1.0})
