"""torch.hub finds the project's networks, and its trained ones, from any folder."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import hubconf
import model
from model import build_model
from tests.conftest import CLASSES
from tests.paths import ROOT
from tool.predict import Segmenter
from util import UserError, checkpoint

OWN = "tests.faults.toy.Toy"


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setitem(model.MODELS, OWN, OWN)
    torch.manual_seed(0)
    network = build_model(OWN, len(CLASSES))
    checkpoint.save(tmp_path / "own.pth", {"model": network.state_dict(), "spec": network.spec})
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "own.pth"


def test_torch_hub_loads_from_another_folder(weights, tmp_path):
    """In a process of its own, started elsewhere."""
    code = f"""
import numpy, torch
load = lambda *a, **k: torch.hub.load({str(ROOT)!r}, *a, source="local", **k)
assert load("network", "fastscnn", num_classes=5).spec["num_classes"] == 5
numpy.save("mask.npy", load("segmenter", "own.pth", plugins=["{OWN}"])("a.png").mask)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "mask.npy"), Segmenter(weights)(tmp_path / "a.png").mask)


def test_a_trained_network_has_the_weights_of_its_file_and_imports_nothing_unasked(weights, monkeypatch):
    state, found = checkpoint.load(weights)["model"], hubconf.trained(str(weights))
    assert not found.training
    assert all(torch.equal(found.state_dict()[name], value) for name, value in state.items())
    monkeypatch.delitem(model.MODELS, OWN)
    with pytest.raises(UserError, match="never imports"):
        hubconf.trained(str(weights))


@pytest.mark.fast
def test_every_entry_is_documented_and_its_packages_are_there():
    entries = {name for name, value in vars(hubconf).items() if callable(value) and name in hubconf.__all__}
    assert entries == set(hubconf.__all__)
    assert all(getattr(hubconf, name).__doc__ for name in entries)
