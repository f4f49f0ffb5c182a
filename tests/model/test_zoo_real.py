"""Real checkpoints of light networks give the numbers that their own code gives."""

import json

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from model import build_model
from model.published import layout_of, load_published, recognise_family
from tests.paths import SHARED

REAL = SHARED / "real"
CAMVID = SHARED / "data" / "camvid"
FRANKFURT = "frankfurt_000000_000576_leftImg8bit.png"
STREET = "0016E5_07959.png"

CGNET = "cgnet/model_800.pth"
ESPNET_CAMVID = "espnet/decoder/espnet_p_2_q_8_camvid.pth"
ESPNET = "espnet/decoder/espnet_p_2_q_8.pth"
ESPNET_C = "espnet/encoder/espnet_p_2_q_3.pth"
ESPNETV2 = "espnetv2/espnetv2_segmentation_s_1.0.pth"


def expected() -> dict:
    if not (REAL / "expected.json").is_file():
        pytest.skip(f"real checkpoints not present: no {REAL / 'expected.json'}")
    return json.loads((REAL / "expected.json").read_text())


def load(file: str) -> dict:
    path = REAL / "checkpoints" / file
    if not path.is_file():
        pytest.skip(f"real checkpoint not present: no {path}")
    return torch.load(path, map_location="cpu", weights_only=True)


def build(file: str) -> tuple[nn.Module, str]:
    checkpoint = load(file)
    found = recognise_family(checkpoint)
    network = build_model(found.model, found.num_classes, found.backbone, **found.options)
    report = load_published(network, checkpoint)
    assert all(name.endswith("num_batches_tracked") for name in report.missing)
    return network.eval(), found.family


def prepare(path, family: str, size: tuple[int, int] | None = None) -> torch.Tensor:
    """The image (1,3,H,W) as the family wants it, resized to a width and a height."""
    wanted = layout_of(family).preprocessing
    image = cv2.imread(str(path))[..., ::-1].astype(np.float32)
    image = (image - np.array(wanted.mean, np.float32)) / np.array(wanted.std, np.float32)
    if wanted.channel_order == "bgr":
        image = image[..., ::-1]
    if size is not None:
        image = cv2.resize(image, size)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]


@pytest.mark.parametrize(
    ("file", "picture", "family"),
    [
        (CGNET, STREET, "CGNet, CamVid"),
        (ESPNET_CAMVID, STREET, "ESPNet, CamVid"),
        (ESPNET, FRANKFURT, "ESPNet, Cityscapes"),
        (ESPNET_C, FRANKFURT, "ESPNet-C, Cityscapes"),
        (ESPNETV2, FRANKFURT, "ESPNetv2"),
    ],
)
def test_a_real_checkpoint_gives_the_logits_of_its_own_code(file, picture, family):
    truth = expected()["checkpoints"][f"checkpoints/{file}"][f"on {picture}"]
    network, found = build(file)
    assert found.startswith(family)
    if picture == STREET:
        x = prepare(CAMVID / "val" / picture, found)
    else:
        x = prepare(REAL / "data" / "cityscapes" / "leftImg8bit" / "val" / "frankfurt" / picture, found, (1024, 512))
    with torch.no_grad():
        # The encoder's own program looks at its logits at stride 8.
        logits = network.decode(network.forward_features(x))["out"] if file == ESPNET_C else network(x)["out"]
    assert list(logits.shape) == truth["output_shape"]
    for place, values in truth["logits"].items():
        row, column = map(int, place.split(","))
        assert logits[0, :, row, column].tolist() == pytest.approx(values, abs=2e-3)
    found = torch.bincount(logits.argmax(1).flatten(), minlength=logits.shape[1])
    difference = (found - torch.tensor(truth["argmax_histogram"])).abs()
    assert difference.sum() <= 1e-4 * found.sum()


@pytest.mark.parametrize(("name", "family"), [("enet", "ENet"), ("cgnet", "CGNet")])
def test_variants_of_another_repository_are_refused_with_the_nearest_family(name, family):
    checkpoint = load(f"zh320/{name}_crop-1024_800epoch.pth")
    with pytest.raises(ValueError, match=rf"Nearest: {family} \(.*\), but \d+ keys without a place: "):
        recognise_family(checkpoint)
    network = build_model(name, 19)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=f"the checkpoint is in no layout known for '{name}'"):
        load_published(network, checkpoint)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(("file", "classes"), [(CGNET, None), (ESPNET_CAMVID, 11), (ESPNET_CAMVID, 12)])
def test_a_real_checkpoint_has_the_score_of_its_own_code_on_camvid(file, classes):
    truth = expected()["camvid_val"][f"checkpoints/{file}"]
    network, family = build(file)
    confusion = torch.zeros(12, 12, dtype=torch.int64)
    for name in sorted(path.name for path in (CAMVID / "val").glob("*.png")):
        with torch.no_grad():
            logits = network(prepare(CAMVID / "val" / name, family))["out"]
        predicted = logits[:, :classes].argmax(1).flatten()
        label = torch.from_numpy(cv2.imread(str(CAMVID / "valannot" / name), cv2.IMREAD_GRAYSCALE)).flatten().long()
        if classes != 12:
            predicted, label = predicted[label < 11], label[label < 11]
        confusion += torch.bincount(label * 12 + predicted, minlength=144).view(12, 12)
    hits = confusion.diagonal().double()
    iou = 100 * hits / (confusion.sum(0) + confusion.sum(1) - hits)
    name = {None: "miou", 11: "miou_argmax_over_11_void_ignored", 12: "miou_argmax_over_12_first_11_classes"}[classes]
    assert float(iou[:11].mean()) == pytest.approx(truth[name], abs=0.006)
    if classes is None:
        assert iou[:11].tolist() == pytest.approx(truth["per_class_iou"], abs=0.006)
