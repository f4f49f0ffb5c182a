"""Learning one drawn scene by heart: every network can, and one whose gradient is cut off cannot."""

import pytest
import torch

from model import MODELS
from model.fcn import FCN
from tests.conftest import failure
from tests.paths import ROOT
from tool import bench
from tool.bench import overfit

SIZE = (128, 192)


class Cut(FCN):
    """A network whose gradient ends at the classifier."""

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return super().decode([feature.detach() * 0 for feature in features])


def test_the_labels_of_the_scene_are_without_their_edges():
    """Against a slow search: a labelled pixel sees one class alone around it."""
    x, y = overfit.scene(SIZE)
    assert x.shape == (2, 3, *SIZE) and y.shape == (2, *SIZE)
    assert torch.equal(y[1], y[0].flip(-1)) and torch.equal(x[1], x[0].flip(-1))
    classes = set(y[0].unique().tolist()) - {255}
    assert len(classes) >= 3
    _, label = overfit.draw_scene(overfit.np.random.default_rng(0), *SIZE)
    margin = overfit.MARGIN
    for row in range(margin, SIZE[0] - margin, 17):
        for column in range(margin, SIZE[1] - margin, 13):
            around = label[row - margin : row + margin + 1, column - margin : column + margin + 1]
            expected = label[row, column] if (around == label[row, column]).all() else 255
            assert y[0, row, column] == expected


def test_a_cut_gradient_is_found(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(MODELS, "cut", f"{__name__}.Cut")
    words = ["overfit", "fastscnn", "cut", "--size", "64", "96", "--steps", "60"]
    assert bench.main(words) == 1
    text = capsys.readouterr().out
    assert "above 0.05 after 60 steps: cut" in text and "fastscnn: cross entropy 0.0" in text
    assert "did you mean 'fcn'" in failure(capsys, bench.main, ["overfit", "fcnn"])
    assert "must be positive" in failure(capsys, bench.main, ["overfit", "fcn", "--steps", "0"])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_network_learns_a_scene_by_heart(name):
    fit = overfit.overfit(overfit.build(name, None, SIZE), SIZE, 400, 1e-3)
    assert fit.loss < overfit.ENOUGH
