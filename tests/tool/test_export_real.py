"""Exports give the network's classes on real pictures, run by the engines alone."""

import cv2
import numpy as np
import pytest
import torch

from dataset import dataset_class
from dataset.read.image import read_image
from model import MODELS, build_model
from tests.model.test_model import ONE_SIZE
from tests.paths import SHARED
from tool import export
from tool.shared.published import read_ours
from tool.shared.segmenter import Segmenter
from util import checkpoint
from util.checkpoint.facts import Facts, facts_of

CHECKPOINTS, CAMVID = SHARED / "real" / "checkpoints", SHARED / "data" / "camvid" / "val"
FILES = (
    "cgnet/model_800.pth",
    "espnet/decoder/espnet_p_2_q_8_camvid.pth",
    "espnet/decoder/espnet_p_2_q_8.pth",
    "espnet/encoder/espnet_p_2_q_3.pth",
    "espnetv2/espnetv2_segmentation_s_1.0.pth",
)
SIZE = (360, 480)
LEAST = 0.999  # share of pixels of the same class, over all pictures


def run_onnx(file):
    session = pytest.importorskip("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["logits"], {"image": batch})[0]


def run_openvino(file):
    model = pytest.importorskip("openvino").Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda batch: model(batch)[0]


ENGINES = pytest.mark.parametrize(
    ("kind", "suffix", "engine"), [("onnx", ".onnx", run_onnx), ("openvino", ".xml", run_openvino)]
)


@pytest.mark.slow
@ENGINES
@pytest.mark.parametrize("name", FILES)
def test_classes_on_camvid(name, kind, suffix, engine, tmp_path):
    """All 101 pictures of val, normalised by NumPy here; what the file gives is compared with Segmenter's classes."""
    file = CHECKPOINTS / name
    if not file.is_file() or not CAMVID.is_dir():
        pytest.skip(f"real checkpoints or pictures not present: no {file} or {CAMVID}")
    out = tmp_path / f"net{suffix}"
    size = [str(side) for side in SIZE]
    assert export.main([str(file), "--to", kind, "--size", *size, "--pictures", str(CAMVID), "--out", str(out)]) == 0
    segmenter, run = Segmenter(file, device="cpu"), engine(out)
    assert segmenter.predictor.scales == (1.0,) and not segmenter.predictor.flip
    facts = facts_of(read_ours(file))
    mean, std = (np.array(values, np.float32)[:, None, None] for values in facts.normalisation)
    equal = total = 0
    for path in sorted(CAMVID.iterdir()):
        image = cv2.imread(str(path))[..., ::-1]
        batch = (image.transpose(2, 0, 1).astype(np.float32) - mean) / std
        found = run(np.ascontiguousarray(batch[None]))[0].argmax(0)
        with torch.no_grad():
            expected = segmenter(np.ascontiguousarray(image)).mask
        equal += int((found == expected).sum())
        total += expected.size
    assert total == 101 * SIZE[0] * SIZE[1] and equal / total >= LEAST


@pytest.mark.slow
@ENGINES
@pytest.mark.parametrize("name", MODELS)
def test_every_network_on_camvid(name, kind, suffix, engine, tmp_path):
    """Random weights, and batch norms that have seen two of the pictures, which are four of val."""
    if not CAMVID.is_dir():
        pytest.skip(f"real pictures not present: no {CAMVID}")
    sides = ONE_SIZE.get(name, SIZE)
    mean, std, data = (124.0, 116.0, 104.0), (58.0, 57.0, 57.0), dataset_class("camvid")
    images = np.stack([cv2.resize(read_image(path, None), sides[::-1]) for path in sorted(CAMVID.iterdir())[::25][:4]])
    pictures = torch.from_numpy(((images - mean) / std).transpose(0, 3, 1, 2).astype(np.float32))
    torch.manual_seed(0)
    network = build_model(name, 11).train()
    with torch.no_grad():
        for _ in range(2):
            network(pictures[:2])
        expected = torch.cat([network.eval()(picture[None])["out"].argmax(1) for picture in pictures])
    facts = Facts("camvid", data.classes, tuple(map(tuple, data.colors.tolist())), None, mean, std, "rgb", {})
    file, out, size = tmp_path / "net.pth", tmp_path / f"net{suffix}", [str(side) for side in sides]
    checkpoint.save(file, {"model": network.state_dict(), "spec": network.spec, **facts.entries(), "optimizer": [1.0]})
    words = ["--to", kind, "--size", *size, "--pictures", str(CAMVID), "--most", "4", "--out", str(out)]
    assert export.main([str(file), *words]) == 0
    run = engine(out)
    found = np.concatenate([run(picture[None].numpy()).argmax(1) for picture in pictures])
    assert (found == expected.numpy()).mean() >= LEAST
