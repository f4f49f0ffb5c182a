"""The augmentation on tensors against the one on arrays, and the colours against OpenCV's."""

import cv2
import numpy as np
import pytest
import torch

from dataset import build_dataset, build_loader
from dataset.augment.device import DeviceTransform, _to_hsv, _to_rgb, augment
from dataset.augment.transform import TrainTransform
from tests.conftest import make_experiment
from tool import train

# Everything at once, and each part alone; the last one has crops larger than the picture.
RECIPES = {
    "semseg": {},
    "scale": {"rotate_prob": 0.0, "blur_prob": 0.0},
    "turned and blurred": {"rotate": (-30.0, 30.0), "rotate_prob": 1.0, "blur_prob": 1.0, "scale": (0.8, 1.25)},
    "jitter": {"jitter": (0.4, 0.4, 0.4, 0.1), "blur_prob": 0.0},
    "photometric": {"photometric": True},
    "padded": {"scale": (0.3, 0.6)},
}


def scene(size, seed):
    """A smooth picture with edges and some noise, and regions of labels with ignored pixels."""
    rng = np.random.default_rng(seed)
    label = cv2.resize(
        rng.integers(0, 11, (size[0] // 16, size[1] // 16), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST
    )
    colours = rng.integers(30, 220, (11, 3))
    image = np.clip(colours[label] + rng.normal(0, 4, (*size, 3)), 0, 255).astype(np.uint8)
    label[: size[0] // 10] = 255
    return cv2.GaussianBlur(image, (5, 5), 0), label


@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)
def test_both_ways_give_the_same_crops(options):
    transform = TrainTransform((97, 130), **options)
    scenes = [scene(size, seed) for seed, size in enumerate([(160, 240), (128, 144), (200, 160), (160, 240)] * 3)]
    drawn = [transform.draw(np.random.default_rng([1, i]), label.shape) for i, (_, label) in enumerate(scenes)]
    images = [torch.from_numpy(image).permute(2, 0, 1) for image, _ in scenes]
    labels = [torch.from_numpy(label) for _, label in scenes]
    found, targets = augment(images, labels, drawn, transform)
    assert found.shape == (12, 3, 97, 130) and found.is_contiguous(memory_format=torch.channels_last)
    assert targets.dtype == torch.uint8 and found.min() >= 0 and found.max() <= 255
    for (image, label), each, one, target in zip(scenes, drawn, found, targets, strict=True):
        expected, truth = transform.apply(image, label, each)
        assert float((one - torch.from_numpy(expected).permute(2, 0, 1)).abs().mean()) < 1
        assert float((target == torch.from_numpy(truth)).float().mean()) > 0.99


def test_padding_is_the_mean_and_ignored():
    transform = TrainTransform(
        (64, 64), scale=(0.5, 0.5), rotate_prob=0.0, blur_prob=0.0, flip_prob=0.0, mean=(10.2, 20.7, 30.0)
    )
    image, label = torch.full((3, 40, 40), 200, dtype=torch.uint8), torch.zeros(40, 40, dtype=torch.uint8)
    found, target = augment([image], [label], [transform.draw(np.random.default_rng(0), (40, 40))], transform)
    assert found[0, :, 0, 0].tolist() == [10, 21, 30] and int(target[0, 0, 0]) == 255
    assert found[0, :, 32, 32].tolist() == [200] * 3 and int(target[0, 32, 32]) == 0


def test_hue_saturation_and_value_are_those_of_opencv():
    levels = np.array([0, 1, 60, 127, 128, 200, 254, 255], np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    hsv = cv2.cvtColor(colours, cv2.COLOR_RGB2HSV)
    found = torch.stack(_to_hsv(torch.from_numpy(colours).permute(2, 0, 1).float()))
    away = (found - torch.from_numpy(hsv).permute(2, 0, 1).float()).abs()
    assert float(torch.minimum(away[0], 180 - away[0]).max()) <= 1 and float(away[1:].max()) <= 1
    back = _to_rgb(*torch.from_numpy(hsv).permute(2, 0, 1).float())
    expected = torch.from_numpy(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).permute(2, 0, 1)
    assert float((back - expected).abs().max()) <= 1


def test_a_loader_hands_pictures_of_any_size_to_the_device(tmp_path):
    """The same crops as those that the workers make, in the same order."""
    lines = []
    for place, size in enumerate([(96, 128), (112, 96), (96, 128), (144, 160)]):
        image, label = scene(size, place)
        cv2.imwrite(str(tmp_path / f"i{place}.png"), image[..., ::-1])
        cv2.imwrite(str(tmp_path / f"l{place}.png"), label)
        lines.append(f"i{place}.png l{place}.png")
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    transform, batches = TrainTransform((48, 64)), {}
    for name, chosen in (("host", transform), ("device", DeviceTransform(transform))):
        data = build_dataset("custom", tmp_path, transform=chosen, classes=tuple(map(str, range(11))))
        for workers in (0, 2):
            loader = iter(build_loader(data, 2, workers=workers))
            batches[name, workers] = [next(loader) for _ in range(4)]
            del loader
    for workers in (0, 2):
        for host, decoded in zip(batches["host", workers], batches["device", workers], strict=True):
            assert decoded["name"] == host["name"]
            image, label = DeviceTransform(transform).apply(decoded["image"], decoded["label"], decoded["drawn"])
            assert float((image - host["image"]).abs().mean()) < 1
            assert float((label == host["label"]).float().mean()) > 0.99


def test_a_run_may_augment_on_the_device(tmp_path, data):
    experiment = make_experiment(tmp_path, data, train={"epochs": 1, "val_every": 0}, augment={"augment": "device"})
    assert train.main(["--config", str(experiment), "--exp", str(tmp_path / "run")]) == 0
