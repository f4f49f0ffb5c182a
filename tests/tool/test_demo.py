"""Pictures in, predictions out, from a checkpoint alone; and what is drawn of a network's inside."""

import importlib

import cv2
import numpy as np
import pytest
import torch

from model import build_model
from model.layer.flow import warp
from tests.conftest import CLASSES, COLORS, failure
from tests.paths import ROOT
from tool import demo
from util import checkpoint
from util.report import panels
from util.score.predict import Predictor

COMMANDS = sorted(path.stem for path in (ROOT / "tool").glob("*.py") if path.stem != "__init__") + ["bench"]


def write_picture(path, size=(48, 64), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    cv2.imwrite(str(path), image)
    return path


def write_checkpoint(path, name="fcn", backbone="resnet18", **more):
    torch.manual_seed(0)
    model = build_model(name, len(CLASSES), backbone)
    facts = {"classes": list(CLASSES), "colors": list(COLORS)}
    checkpoint.save(path, {"model": model.state_dict(), "spec": model.spec, **facts, **more})
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "fcn.pth")


def run(*arguments) -> int:
    return demo.main([str(argument) for argument in arguments])


def read(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def test_photo_beside_prediction_in_the_colours_of_the_checkpoint(tmp_path, weights):
    photo = write_picture(tmp_path / "a.png")
    assert run(photo, "--checkpoint", weights, "--out", tmp_path / "out") == 0
    result, original = read(tmp_path / "out" / "a.png"), read(photo)
    assert np.array_equal(result[:48, :64], original)
    model = build_model("fcn", len(CLASSES), "resnet18")
    model.load_state_dict(checkpoint.load(weights)["model"])
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    expected = Predictor(model, len(CLASSES), mean, std)(torch.from_numpy(original).permute(2, 0, 1)).numpy()
    assert np.array_equal(result[:48, -64:], np.array(COLORS, np.uint8)[expected])
    assert result.shape[0] > 48  # the legend


def test_normalisation_of_the_checkpoint(tmp_path):
    data = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}
    file = write_checkpoint(tmp_path / "w.pth", config={"data": data})
    predictor = demo.predictor_of(demo.load_state(str(file)), str(file), torch.device("cpu"))
    assert predictor.mean.flatten().tolist() == data["mean"]
    assert predictor.std.flatten().tolist() == data["std"]


def test_folders_are_searched_and_keep_their_structure(tmp_path, weights):
    folder = tmp_path / "in"
    for name in ("a.png", "sub/b.JPG", "c.png", "c.jpg"):
        write_picture(folder / name)
    (folder / "notes.txt").write_text("no picture")
    # the second time earlier results lie in the folder that is searched
    single, out = write_picture(tmp_path / "d.png"), folder / "out"
    for _ in range(2):
        assert run(folder, single, single, "--checkpoint", weights, "--out", out) == 0
        written = {str(path.relative_to(out)) for path in out.rglob("*.png")}
        assert written == {"a.png", "sub/b.png", "c.png.png", "c.jpg.png", "d.png"}


def test_hidden_files_are_left_alone_and_unreadable_ones_named(tmp_path, weights, capsys):
    """As macOS and Jupyter leave folders: ._1.png beside 1.png, .ipynb_checkpoints."""
    photos = tmp_path / "photos"
    for name in ("0.png", "1.png", "2.png", ".ipynb_checkpoints/0-checkpoint.png"):
        write_picture(photos / name, (24, 32))
    (photos / "._1.png").write_bytes(b"\x00\x05\x16\x07")
    cut = photos / "1.png"
    cut.write_bytes(cut.read_bytes()[:500])
    shown = failure(capsys, run, photos, "--checkpoint", weights, "--out", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.png")) == ["0.png", "2.png"]
    assert f"{cut}: not a readable picture" in shown and "1 of 3 pictures could not be read" in shown


def test_large_pictures_are_shrunk(tmp_path, weights):
    photo = write_picture(tmp_path / "a.png", (90, 60))
    assert run(photo, "--checkpoint", weights, "--out", tmp_path / "out", "--longest", 45) == 0
    small = demo.shrink(read(photo), 45)
    assert small.shape == (45, 30, 3) and demo.shrink(small, 45) is small
    assert np.array_equal(read(tmp_path / "out" / "a.png")[:45, :30], small)
    assert demo.shrink(np.zeros((4, 4000, 3), np.uint8), 100).shape == (1, 100, 3)


@pytest.mark.parametrize(
    ("name", "backbone", "number"),
    [("semanticflow", "resnet18", 3), ("semanticflow_lite", "stdc1", 2), ("sketchfill", "mobilenet_v2", 4)],
)
def test_the_inside_is_drawn_below_photo_and_prediction(tmp_path, name, backbone, number):
    file = write_checkpoint(tmp_path / "w.pth", name, backbone)
    photo = write_picture(tmp_path / "a.png", (64, 96))
    assert run(photo, "--checkpoint", file, "--out", tmp_path / "out", "--flow") == 0
    drawn = read(tmp_path / "out" / "a.png")
    photo_height, width = round(panels.SMALLEST_PANEL * 64 / 96), drawn.shape[1]
    height, panel = panels.panel_size(64 / 96, number, width)
    assert width >= 2 * panels.SMALLEST_PANEL and drawn.shape[0] > photo_height + height
    row = drawn[photo_height + 100 : photo_height + height]  # of the panels, however high the legend is
    gap = (width - number * panel) // (number - 1)
    for left in range(0, width - panel, panel + gap):
        assert row[:, left : left + panel].std() > 1
        assert left == 0 or (row[:, left - gap + 1 : left - 1] == 255).all()


def test_panels_of_known_flow():
    """Read from the right everywhere, in a field of stride 8 and one of stride 4: red."""
    to_the_right = np.array([1.0, 0.0]).reshape(2, 1, 1)
    fields = [np.tile(2 * to_the_right, (1, 4, 6)), np.tile(to_the_right, (1, 8, 12))]
    row, legend = panels.flow_rows({"flow": fields}, (32, 48), 1600)
    assert row.shape[1] == legend.shape[1] == 1600
    for left in (100, 1500):
        assert (row[-200:, left] == (255, 0, 0)).all()
    assert [panels.in_pixels(field, (32, 48))[0, 0, 0] for field in fields] == [8.0, 2.0]


def test_stride_of_a_map_whose_size_was_rounded_up():
    for stride, size in {4: (90, 50), 16: (23, 13), 32: (12, 7)}.items():
        assert panels.stride_of(np.zeros((1, *size)), (360, 200)) == stride


def test_gates_and_sketch_of_known_values():
    """A gate that opens to the right is dark on the left and bright on the right."""
    ramp = np.linspace(0.2, 0.6, 12, dtype=np.float32).reshape(1, 1, 12).repeat(8, 1).repeat(5, 0)
    sketch = np.random.default_rng(0).normal(size=(5, 4, 6)).astype(np.float32)
    row, _ = panels.gate_rows({"sketch": [sketch], "gate": [ramp]}, (32, 48), 1600)
    gate = row[-300:, 808:].astype(int).sum(-1)
    assert (gate[:, 0] + 200 < gate[:, -1]).all() and (np.diff(gate.mean(0)) >= -2).all()


def test_flow_is_measured_in_pixels_of_the_picture():
    """Against the warp itself: a row of numbers 0, 1, 2, ... tells from how far away each was read."""
    flow = np.full((2, 8, 16), 0.5, np.float32)
    numbers = torch.arange(16.0).expand(1, 1, 8, 16)
    moved = warp(numbers, torch.from_numpy(flow)[None], align_corners=False)
    still = warp(numbers, torch.zeros(1, 2, 8, 16), align_corners=False)
    cells = float((moved - still)[0, 0, 4, 8])
    assert panels.in_pixels(flow, (8 * 4, 16 * 4))[0, 0, 0] == pytest.approx(4 * cells, rel=1e-3)


@pytest.mark.parametrize(
    ("vector", "color"),
    [((1, 0), (255, 0, 0)), ((0, 0), (255, 255, 255)), ((9, 0), (255, 0, 0)), ((0.5, 0), (255, 128, 128))],
)
def test_colour_of_a_vector(vector, color):
    flow = np.array(vector, np.float32).reshape(2, 1, 1)
    assert panels.flow_colors(flow, 1.0)[0, 0] == pytest.approx(color, abs=1)


def test_directions_go_round_the_wheel():
    """Down is yellowish, left cyan, up violet: the wheel of Baker et al.; and the legend shows just that."""
    legend = panels.wheel(101)
    assert (legend[50, 50] > 250).all() and (legend[0, 0] == 255).all()
    for (x, y), where in {(0, 1): (98, 50), (-1, 0): (50, 2), (0, -1): (2, 50), (1, 0): (50, 98)}.items():
        color = panels.flow_colors(np.array([x, y], np.float32).reshape(2, 1, 1), 1.0)[0, 0]
        assert np.abs(legend[where].astype(int) - color).max() <= 12
        red, green, blue = (int(value) for value in color)
        expected = {(0, 1): red > green > blue, (-1, 0): red < green < blue, (0, -1): green < red < blue}
        assert expected.get((x, y), red > green == blue)


def test_features_that_differ_get_other_colours():
    """Three regions of random features with a little noise: alike inside, apart from one another."""
    rng = np.random.default_rng(0)
    region = np.repeat([0, 1, 2], 40).reshape(1, 120).repeat(10, 0)
    features = rng.normal(size=(3, 32))[region].transpose(2, 0, 1) + 0.01 * rng.normal(size=(32, 10, 120))
    colors = panels.feature_colors(features)[:2]  # two numbers tell three points apart
    means = [colors[:, region == index].mean(1) for index in range(3)]
    inside = max(colors[:, region == index].std(1).max() for index in range(3))
    between = min(np.abs(means[a] - means[b]).max() for a, b in ((0, 1), (1, 2), (0, 2)))
    assert inside < 0.02 < 0.3 < between
    assert np.isfinite(panels.feature_colors(np.ones((4, 3, 3)))).all()


def test_heat_rises_with_the_number():
    colors = panels.heat(np.array([[0.0, 0.5, 1.0, 2.0]]), 0.0, 1.0).astype(int)
    assert (np.diff(colors.sum(-1)) >= 0).all() and np.array_equal(colors[0, 2], colors[0, 3])


def test_mistakes_are_one_message(tmp_path, weights, capsys):
    photo, out = write_picture(tmp_path / "a.png"), ("--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    broken, text = tmp_path / "broken.pth", tmp_path / "text.png"
    torch.save({"state_dict": {"module.conv1.weight": torch.zeros(1)}}, broken)
    text.write_text("no picture")
    for arguments, expected in (
        ((tmp_path / "none.png", "--checkpoint", weights), "no such picture or folder"),
        ((tmp_path / "empty", "--checkpoint", weights), "no picture in it"),
        ((tmp_path, "--checkpoint", weights, "--out", tmp_path), "would be mixed"),
        ((photo, "--checkpoint", tmp_path / "none.pth"), "no such checkpoint"),
        ((photo, "--checkpoint", broken), "broken.pth: the checkpoint is of no published family"),
        ((text, "--checkpoint", weights), "text.png: not a readable picture"),
        ((photo, "--checkpoint", weights, "--out", tmp_path), "would be overwritten"),
        ((photo, "--checkpoint", weights, "--flow"), "holds fcn"),
        ((photo, "--checkpoint", weights, "--longest", "0"), "at least one pixel"),
    ):
        assert expected in failure(capsys, run, *out, *arguments)


@pytest.mark.fast
@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_arguments_are_one_line_with_an_example(name, capsys):
    message = failure(capsys, importlib.import_module(f"tool.{name}").main, ["--unknown", "x"])
    shown = "sh tool/train.sh" if name == "launch" else f"python -m tool.{name}"
    assert f"for example: {shown} " in message and "usage" not in message
