"""`overfit`: networks learn one drawn street scene by heart.

A wrong gradient prevents it. The pixels near an edge of the label are left out, since a coarse grid of scores cannot
follow it.
"""

import argparse
import inspect
import time
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import nn

from dataset.read.labelmap import IGNORE
from dataset.scene import CLASSES, draw_scene
from model import MODELS, build_model
from model.base import SegModel
from model.table import load
from tool.bench.experiment import check_size
from util import UserError
from util.config.schema import IMAGENET_MEAN, IMAGENET_STD
from util.loss import SegLoss
from util.record.log import log

ENOUGH = 0.05  # cross entropy of the main output, nats a pixel
MARGIN = 12  # pixels from an edge of the label that are left out
SMALLEST = "resnet18"
# Networks that are made for other backbones, and the smallest of these.
OWN_SMALLEST = {
    "hrnet": "hrnet_w18_small_v2",
    "hrnet_ocr": "hrnet_w18_small_v2",
    "lraspp": "mobilenet_v3_large",
    "segformer": "mit_b0",
    "stdc": "stdc1",
}


class Fit(NamedTuple):
    """How far a network came: cross entropy, steps, seconds."""

    loss: float
    steps: int
    seconds: float


def add(commands) -> None:
    text = "learn one drawn street scene by heart: the loss goes to zero, or something is wrong"
    parser = commands.add_parser("overfit", help=text, description=text)
    parser.add_argument("names", nargs="+", metavar="NAME", help="a network of model.MODELS; all: each of them")
    parser.add_argument("--backbone", help="default: a small one that the network is made for")
    parser.add_argument("--size", nargs=2, type=int, default=(128, 192), metavar=("H", "W"), help="of the scene")
    parser.add_argument("--steps", type=int, default=400, help="at most (default 400)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of AdamW (default 0.001)")
    parser.set_defaults(run=run, overrides=[])


def run(args: argparse.Namespace) -> int:
    """Fit each network; status 1 where one does not come below ENOUGH."""
    names = list(MODELS) if args.names == ["all"] else args.names
    size, failed = check_size(tuple(args.size)), []
    if args.steps < 1 or args.lr <= 0:
        raise UserError(f"--steps {args.steps} --lr {args.lr}: both must be positive")
    for name in names:
        fit = overfit(build(name, args.backbone, size), size, args.steps, args.lr)
        log.info("%s: cross entropy %.4f after %d steps, %.0f s", name, *fit)
        if fit.loss > ENOUGH:
            failed.append(name)
    if failed:
        log.error("above %s after %d steps: %s", ENOUGH, args.steps, ", ".join(failed))
    return 1 if failed else 0


def build(name: str, backbone: str | None, size: tuple[int, int]) -> SegModel:
    """Build a network for the scene's classes, without dropout.

    Raises:
        ModelError: name or backbone is unknown.
    """
    if backbone is None and name in MODELS and "backbone" in inspect.signature(load(MODELS[name])).parameters:
        backbone = OWN_SMALLEST.get(name, SMALLEST)
    options = {"cells": -(-size[0] // 8) * -(-size[1] // 8)} if name == "psanet" else {}
    torch.manual_seed(0)
    model = build_model(name, len(CLASSES), backbone, **options)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    return model


def scene(size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a scene and its mirror image, labels without their edges.

    Returns:
        Normalised images (2,3,H,W) and labels (2,H,W).
    """
    image, label = draw_scene(np.random.default_rng(0), *size)
    square = np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)
    inside = cv2.erode(label, square) == cv2.dilate(label, square)
    label = np.where(inside, label, IGNORE)
    x = torch.from_numpy((image - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)).permute(2, 0, 1)
    y = torch.from_numpy(label.astype(np.int64))
    return torch.stack([x, x.flip(-1)]), torch.stack([y, y.flip(-1)])


def overfit(model: SegModel, size: tuple[int, int], steps: int, lr: float) -> Fit:
    """Train the network on the scene until its loss is below ENOUGH."""
    x, y = scene(size)
    model.train()
    weights = dict.fromkeys(model(x), 1.0)
    criterion = SegLoss(weights, len(CLASSES), IGNORE)
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    start, loss, step = time.perf_counter(), float("inf"), 0
    while step < steps and loss >= ENOUGH:
        step += 1
        total, terms = criterion(model(x), y)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        loss = float(terms["out"])
    return Fit(loss, step, time.perf_counter() - start)
