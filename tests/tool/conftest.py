"""What the tests of tool.predict stand on."""

import pytest

import model
from tests.prediction import write_checkpoint


@pytest.fixture
def toy_weights(tmp_path, monkeypatch):
    """A toy's checkpoint, of a network that the test alone knows."""
    monkeypatch.setitem(model.MODELS, "toy", "tests.faults.toy.Toy")
    return write_checkpoint(tmp_path / "toy.pth")
