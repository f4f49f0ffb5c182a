"""Exports of published checkpoints give the network's classes on real pictures, run by the engines alone."""

import cv2
import numpy as np
import pytest
import torch

from tests.paths import SHARED
from tool import export
from tool.shared.published import read_ours
from tool.shared.segmenter import Segmenter
from util.checkpoint.facts import facts_of

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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "suffix", "engine"), [("onnx", ".onnx", run_onnx), ("openvino", ".xml", run_openvino)]
)
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
