"""`bench eval`: the older ways as they are written down, and the tables that compare ours with them."""

import json

import numpy as np
import pytest
import torch

from tool import bench
from tool.bench import evaluate
from tool.bench.evaluate import EXACT, FAST, SEMSEG, Points
from tool.bench.plain import evaluate as eval_plain
from util.score.predict import Predictor

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@pytest.mark.parametrize("classes", [7, 150])
@pytest.mark.parametrize("scales", [(1.0,), evaluate.SIX])
@pytest.mark.parametrize("size", [(61, 90), (40, 35), (33, 683)])
def test_semsegs_way_gives_our_probabilities(classes, scales, size):
    net, picture = Points(classes, 1), evaluate.picture_of(None, size)
    expected = eval_plain.windowed(net.coarse, picture, classes, 41, scales, MEAN, STD, 2 / 3)
    ours = Predictor(net, classes, MEAN, STD, scales, flip=True, window=(41, 41))
    image = torch.from_numpy(picture).permute(2, 0, 1)
    found = ours.probabilities(image).permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() < 3e-6
    ordered = np.sort(expected, 2)
    decided = ordered[..., -1] - ordered[..., -2] > 1e-5
    assert np.array_equal(ours(image).numpy()[decided], expected.argmax(2)[decided]) and decided.mean() > 0.99


def test_the_sliding_way_gives_the_logits_of_a_network_without_neighbourhood():
    net, picture = Points(5, 1), evaluate.picture_of(None, (50, 70))
    normalised = (torch.from_numpy(picture).permute(2, 0, 1).float() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
        STD
    ).view(3, 1, 1)
    expected = net.coarse(normalised[None])[0].numpy()
    for crop in (32, 64):
        found = eval_plain.sliding(net.coarse, picture, 5, crop, (1.0,), MEAN, STD)
        assert np.abs(found - expected).max() < 1e-4
    assert eval_plain.sliding(net.coarse, picture, 5, 32, evaluate.THREE, MEAN, STD).shape == (5, 50, 70)


def test_both_metrics_by_hand():
    label = np.array([[0, 0, 0, 1], [1, 1, 2, 255]], np.uint8)
    prediction = np.array([[0, 0, 1, 1], [1, 2, 2, 2]], np.uint8)
    assert eval_plain.histogram(prediction, label, 3).tolist() == [[2, 1, 0], [0, 2, 1], [0, 0, 1]]
    hit, union, labelled = eval_plain.areas(prediction, label, 3)
    assert (hit.tolist(), union.tolist(), labelled.tolist()) == ([2, 2, 1], [3, 4, 2], [3, 3, 1])


def test_the_command_compares_everything(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "peak_memory_added", lambda function: 7.0)
    file = tmp_path / "eval.json"
    threads = torch.get_num_threads()
    command = ["eval", "camvid", "sfnet_mobile", "--size", "70", "90", "--rounds", "1", "--json", str(file)]
    assert bench.main([*command, "augment.crop=[41,41]"]) == 0
    torch.set_num_threads(threads)
    value, shown = json.loads(file.read_text()), capsys.readouterr().out
    titles = [table["title"] for table in value["tables"]]
    assert len(titles) == 8 and all(title in shown for title in titles)
    for table in value["tables"][:4]:
        assert [row["name"] for row in table["rows"]][:2] == [SEMSEG, EXACT]
        assert table["facts"][EXACT]["same class"] == 1.0 and table["facts"][EXACT]["largest difference"] < 1e-5
        assert table["facts"][SEMSEG]["peak MiB"] == 7
    for table in value["tables"][2:4]:
        assert 0.5 < table["facts"][FAST]["same class"] <= 1


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        bench.main(["eval", "camvid", "sfnet_mobile", "--threads", "0"])
    with pytest.raises(ValueError, match="no readable picture"):
        bench.main(["eval", "camvid", "sfnet_mobile", "--picture", str(tmp_path / "none.png")])


def test_a_picture_is_halved_where_the_older_way_does_not_fit(monkeypatch):
    task = evaluate.Task(evaluate.picture_of(None, (256, 512)), 19, 41, 2 / 3, MEAN, STD)
    monkeypatch.setattr(evaluate, "free_memory", lambda: 14 * 8 * 19 * 4 * 256 * 512 / 2)
    assert evaluate.fitting(task, (0.5, 2.0)).picture.shape == (128, 256, 3)
