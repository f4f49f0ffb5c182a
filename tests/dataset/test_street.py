"""The embedded street scenes: what is drawn, that label and picture agree, how the data set is drawn."""

import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import psutil
import pytest

import dataset.street as street
from dataset import build_dataset
from dataset.scene.canvas import (
    BICYCLE,
    CAR,
    FENCE,
    MARKING,
    PERSON,
    POLE,
    ROAD,
    SKY,
    VEGETATION,
    VERSION,
    VOID,
    Camera,
    Canvas,
    clip_near,
    draw_light,
)
from dataset.scene.furnish import furnish
from dataset.scene.furniture import Pole
from dataset.scene.ground import survey
from dataset.scene.plan import ASPHALT, WHITE, Plan
from dataset.scene.traffic import Bicycle, Car, Person
from dataset.street import Street, draw_scene, prepare
from tests.paths import ROOT

SMALL = {"size": (48, 64), "train": 3, "val": 2}
NAMES = [*(f"train_{i:05}.png" for i in range(3)), *(f"val_{i:05}.png" for i in range(2))]


def draw(seed, height=192, width=256):
    return draw_scene(np.random.default_rng(seed), height, width)


@pytest.fixture(scope="module")
def scenes():
    return [draw(seed) for seed in range(40)]


# drawing


def test_the_seed_alone_decides_every_byte():
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        image, label = draw(3)
        cv2.setNumThreads(4)
        again, label_again = draw(3)
    finally:
        cv2.setNumThreads(before)
    assert image.tobytes() == again.tobytes() and label.tobytes() == label_again.tobytes()
    other, other_label = draw(4)
    assert (other != image).mean() > 0.5 and (other_label != label).mean() > 0.05


@pytest.mark.parametrize("size", [(192, 256), (75, 101), (256, 96), (32, 32)])
def test_sizes(size):
    image, label = draw(1, *size)
    assert image.shape == (*size, 3) and image.dtype == np.uint8
    assert label.shape == size and label.dtype == np.uint8


def test_too_small_a_scene_is_refused():
    with pytest.raises(ValueError, match="at least 32 x 32"):
        draw(0, 31, 64)


def test_labels_and_shares(scenes):
    count = len(Street.classes)
    pixels = np.stack([np.bincount(label.ravel(), minlength=256) for _, label in scenes])
    assert pixels[:, count:255].sum() == 0
    frequency = (pixels[:, :count] >= 20).mean(axis=0)
    share = pixels.sum(axis=0) / pixels.sum()
    for name, often, part in zip(Street.classes, frequency, share, strict=False):
        assert often >= 0.5, f"{name} is in {often:.0%} of the scenes"
        assert part > 0.002, f"{name} covers {part:.2%}"
    assert share[:count].max() < 0.45
    assert 0 < share[255] < 0.06
    assert 0.05 < (pixels[:, 255] > 0).mean() < 0.6


def test_scenes_vary(scenes):
    light = [image.mean() for image, _ in scenes]
    assert np.std(light) > 8
    horizon = [np.argmax((label == ROAD).any(axis=1)) for _, label in scenes]
    assert np.ptp(horizon) > 20


def mean_color(scenes, kind):
    colors = [image[label == kind].mean(axis=0) for image, label in scenes if (label == kind).any()]
    return np.mean(colors, axis=0)


def test_picture_and_label_agree(scenes):
    sky, road = mean_color(scenes, SKY), mean_color(scenes, ROAD)
    assert sky.mean() - road.mean() > 40
    assert mean_color(scenes, MARKING).mean() - road.mean() > 40
    red, green, blue = mean_color(scenes, VEGETATION)
    assert green > red and green > blue + 20
    assert np.ptp(road) < 25  # grey


def test_edges_of_the_label_are_edges_of_the_picture(scenes):
    on, off = [], []
    for image, label in scenes:
        grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 1).astype(np.float32)
        slope = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
        edge = cv2.morphologyEx(label, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        on.append(slope[edge].mean())
        off.append(slope[~edge].mean())
    assert np.mean(on) > 3 * np.mean(off)


# geometry


@pytest.fixture
def canvas():
    """An empty canvas of 400 x 600, level, focal length 500, eye at 1.5 m, horizon in the middle."""
    rng = np.random.default_rng(0)
    camera = Camera(rng, 400, 600)
    camera.focal, camera.eye, camera.cx, camera.horizon = 500.0, 1.5, 300.0, 200.0
    camera.cos, camera.sin = 1.0, 0.0
    canvas = Canvas(camera, draw_light(rng), rng)
    canvas.label[:] = VOID
    return canvas


def test_projection(canvas):
    points = np.array([[0.0, 1.5, 10.0], [2.0, 0.0, 10.0], [-1.0, 3.5, 5.0]])
    assert canvas.camera.project(points) == pytest.approx(np.array([[300, 200], [400, 275], [200, 0]]))


def test_rays_undo_the_projection():
    camera = Camera(np.random.default_rng(5), 384, 512)
    assert camera.sin != 0
    right, below = camera.rays()
    row, column = 330, 90
    z = camera.focal * camera.eye / below[row, column]
    x = right[row, column] * z / camera.focal
    assert camera.project(np.array([x, 0.0, z])) == pytest.approx([column, row], abs=0.01)


def test_clipping_at_the_near_plane():
    inside = np.array([[0, 0, 2.0], [1, 0, 2], [1, 1, 2]])
    assert clip_near(inside) is inside
    assert len(clip_near(inside - (0, 0, 2))) == 0
    cut = clip_near(np.array([[0, 0, 0.0], [0, 0, 3], [6, 0, 3]]))
    expected = {(0, 0, 1), (0, 0, 3), (6, 0, 3), (2, 0, 1)}
    assert {tuple(point) for point in cut.round(9)} == expected


def extent(canvas, kind):
    """Height above the ground, in metres at 10 m, of the highest and the lowest pixel of a class."""
    rows = np.flatnonzero((canvas.label == kind).any(axis=1))
    return 1.5 + (200 - rows[0]) / 50, 1.5 + (200 - rows[-1]) / 50


def test_things_have_their_size_and_stand_on_the_ground(canvas):
    rng, point = canvas.rng, np.array([0.0, 0.0, 10.0])
    Person(rng, point, 1.75).paint(canvas)
    top, bottom = extent(canvas, PERSON)
    assert top == pytest.approx(1.78, abs=0.06) and bottom == pytest.approx(0, abs=0.06)
    car = Car(rng, point + (0, 0, car_length(rng) / 2), 0.0)
    car.z = 10 + car.length / 2  # its rear stands at 10 m
    car.paint(canvas)
    top, bottom = extent(canvas, CAR)
    assert car.roof - 0.35 < top < car.roof + 0.05 and bottom == pytest.approx(0, abs=0.2)
    Pole(rng, point + (2, 0, 0), 1, "lantern").paint(canvas)
    top, bottom = extent(canvas, POLE)
    assert 3.5 < top < 5.1 and bottom == pytest.approx(0, abs=0.06)
    Bicycle(rng, point - (2, 0, 0), False, 0.0, 1).paint(canvas)
    top, bottom = extent(canvas, BICYCLE)
    assert 0.9 < top < 1.2 and bottom == pytest.approx(0, abs=0.08)


def car_length(rng):
    return Car(rng, np.array([0.0, 0.0, 10.0]), 0.0).length


def test_shadow_falls_away_from_the_sun(canvas):
    light = canvas.light
    object.__setattr__(light, "sun", (-math.sqrt(0.5), math.sqrt(0.5), 0.0))  # at 45 degrees on the left
    canvas.cast([(x, y, 10.0) for x in (-0.1, 0.1) for y in (0.0, 2.0)])
    columns = np.flatnonzero(canvas.shadow.any(axis=0))
    assert columns[0] == pytest.approx(300 - 5, abs=2) and columns[-1] == pytest.approx(300 + 105, abs=2)


def test_nothing_stands_in_the_road_of_another():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        draw_light(rng)
        camera = Camera(rng, 384, 512)
        plan = Plan(rng)
        things = furnish(rng, plan, camera)
        cars = [thing for thing in things if isinstance(thing, Car)]
        people = [thing for thing in things if isinstance(thing, Person | Bicycle)]
        for car in cars:
            for other in people:
                dx, dz = other.x - car.x, other.z - car.z
                along, across = dx * car.sin + dz * car.cos, dx * car.cos - dz * car.sin
                assert abs(along) > car.length / 2 or abs(across) > car.width / 2


def test_zebra_stripes_are_half_of_the_crossing():
    rng = np.random.default_rng(0)
    camera, plan = Camera(rng, 384, 512), Plan(rng)
    plan.curve, plan.left, plan.right = 0.0, -6.0, 6.0
    plan.crossing, plan.zebra, plan.stripe = None, (10.0, 13.0), 0.5
    plan.lines, plan.arrows, plan.patches, plan.manholes = [], [], [], []
    s, z = np.meshgrid(np.arange(-5, 5, 0.01, np.float32), np.arange(10.5, 12.5, 0.1, np.float32))
    material = survey(plan, camera, s, z)
    assert (material == WHITE).mean() == pytest.approx(0.5, abs=0.02)
    assert set(np.unique(material)) == {WHITE, ASPHALT}


# the data set


def test_prepare_writes_an_ordinary_data_set(tmp_path):
    root = prepare(tmp_path / "deep" / "street", **SMALL)
    assert sorted(os.listdir(root)) == ["image", "label", "street.json", "train.txt", "val.txt"]
    assert sorted(os.listdir(root / "image")) == sorted(os.listdir(root / "label")) == NAMES
    lines = (root / "train.txt").read_text().splitlines()
    assert lines == [f"image/train_{i:05}.png label/train_{i:05}.png" for i in range(3)]
    for split, number in (("train", 0), ("val", 1)):
        for line in (root / f"{split}.txt").read_text().splitlines():
            assert all((root / name).is_file() for name in line.split())
        image, label = draw([0, number, 1], 48, 64)
        stored = cv2.imread(str(root / f"image/{split}_00001.png"), cv2.IMREAD_UNCHANGED)
        assert (stored[..., ::-1] == image).all()
        assert (cv2.imread(str(root / f"label/{split}_00001.png"), cv2.IMREAD_UNCHANGED) == label).all()
    assert os.listdir(root.parent) == ["street"]


def times(root):
    return {name: os.stat(root / "image" / name).st_mtime_ns for name in NAMES}


def test_a_finished_set_is_kept(tmp_path):
    root = prepare(tmp_path / "street", **SMALL)
    before = times(root)
    prepare(root, **SMALL)
    assert times(root) == before


def remove_stamp_keys(root):
    (root / "street.json").write_text("{}")


def cut_stamp(root):
    (root / "street.json").write_text('{"version"')


def remove_picture(root):
    (root / "image" / NAMES[1]).unlink()


def remove_list(root):
    (root / "val.txt").unlink()


@pytest.mark.parametrize("damage", [remove_stamp_keys, cut_stamp, remove_picture, remove_list])
def test_an_incomplete_set_is_drawn_again(tmp_path, damage):
    root = prepare(tmp_path / "street", **SMALL)
    damage(root)
    prepare(root, **SMALL)
    assert sorted(os.listdir(root / "image")) == NAMES and (root / "val.txt").is_file()
    assert json.loads((root / "street.json").read_text())["train"] == 3
    assert os.listdir(tmp_path) == ["street"]


def test_other_facts_are_drawn_anew(tmp_path):
    root = prepare(tmp_path / "street", **SMALL)
    prepare(root, size=(40, 56), train=2, val=1, seed=7)
    assert cv2.imread(str(root / "image/train_00000.png")).shape == (40, 56, 3)
    assert len(os.listdir(root / "image")) == 3


def test_a_killed_drawing_leaves_no_set_and_is_swept(tmp_path, monkeypatch):
    root = tmp_path / "street"

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(street, "draw_share", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(root, **SMALL)
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    old, young = tmp_path / ".street-drawing-a", tmp_path / ".street-drawing-b"
    old.mkdir()
    young.mkdir()
    os.utime(old, (1, 1))
    prepare(root, **SMALL)
    assert sorted(os.listdir(tmp_path)) == [".street-drawing-b", "street"]


PROGRAM = """
from dataset import street
street._processors, street.SCENES_PER_WORKER = lambda: 2, 1
street.prepare("street", size=(512, 1024), train=300, val=1)
"""


def test_drawing_in_processes_is_the_same_drawing(tmp_path, monkeypatch):
    prepare(tmp_path / "one", size=(48, 64), train=3, val=1)
    monkeypatch.setattr(street, "_processors", lambda: 2)
    monkeypatch.setattr(street, "SCENES_PER_WORKER", 1)
    prepare(tmp_path / "two", size=(48, 64), train=3, val=1)
    for path in (tmp_path / "one").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_drawing_processes_end_with_their_parent(tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    while not list(tmp_path.glob(".street-drawing-*/image/*.png")):
        assert parent.poll() is None
        time.sleep(0.05)
    children = psutil.Process(parent.pid).children()
    assert len(children) == 2
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(children, timeout=60)[1] == []


def test_several_at_once_end_in_one_whole_set(tmp_path):
    root = tmp_path / "street"
    prepare(root, **{**SMALL, "seed": 5})  # outdated, so that each of them has to replace it
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: prepare(root, **SMALL), range(4))) == [root] * 4
    assert sorted(os.listdir(root / "image")) == NAMES
    assert (cv2.imread(str(root / "label/val_00000.png"), -1) == draw([0, 1, 0], 48, 64)[1]).all()
    assert os.listdir(tmp_path) == ["street"]


def test_processes_draw_what_one_draws(tmp_path, monkeypatch):
    prepare(tmp_path / "one", **SMALL)
    monkeypatch.setattr(street, "SCENES_PER_WORKER", 2)
    monkeypatch.setattr(street, "_processors", lambda: 2)
    prepare(tmp_path / "two", **SMALL)
    for kind in ("image", "label"):
        for name in NAMES:
            one, two = (tmp_path / folder / kind / name for folder in ("one", "two"))
            assert one.read_bytes() == two.read_bytes()


def test_a_failing_process_is_reported(tmp_path):
    with pytest.raises(OSError, match="could not be written"):
        street._draw_in_processes([str(tmp_path / "missing"), 32, 32, 2, 2, 0], 2)


def test_files_of_others_are_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds thesis.tex"):
        prepare(tmp_path, **SMALL)
    own = tmp_path / "own"  # laid out like a street set, but not stamped as one
    (own / "image").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds image"):
        prepare(own, **SMALL)
    drawn = prepare(tmp_path / "street", **SMALL)
    (drawn / "notes.txt").write_text("")
    prepare(drawn, **SMALL)
    with pytest.raises(ValueError, match="holds notes.txt"):
        prepare(drawn, **{**SMALL, "seed": 1})
    with pytest.raises(ValueError, match="is a file"):
        prepare(tmp_path / "thesis.tex", **SMALL)


@pytest.mark.parametrize("wrong", [{"size": (16, 64)}, {"train": 0}, {"val": 0}, {"seed": -1}])
def test_impossible_orders_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="street: "):
        prepare(tmp_path / "street", **{**SMALL, **wrong})
    assert os.listdir(tmp_path) == []


def test_facts():
    assert Street.name == "street" and len(Street.classes) == len(Street.colors) == 12
    assert len({tuple(color) for color in Street.colors}) == 12
    assert Street.classes[PERSON] == "person" and Street.classes[FENCE] == "fence"


def test_the_data_set_is_read(tmp_path):
    root = prepare(tmp_path / "street", **SMALL)
    data = build_dataset("street", root, split="val")
    assert len(data) == 2 and data.classes == Street.classes
    sample = data[1]
    image, label = draw([0, 1, 1], 48, 64)
    assert sample["name"] == "val_00001"
    assert (sample["image"].permute(1, 2, 0).numpy() == image).all()
    assert (sample["label"].numpy() == label).all()


def test_the_data_set_draws_itself_where_it_is_missing(tmp_path, monkeypatch):
    orders = []

    def small(root, **facts):
        orders.append(facts)
        return prepare(root, **{**SMALL, **facts})

    monkeypatch.setattr(street, "prepare", small)
    root = tmp_path / "street"
    assert len(build_dataset("street", root)) == 3
    assert len(build_dataset("street", root)) == 3
    assert orders == [{}]
    monkeypatch.setattr(street.scene, "VERSION", VERSION + 1)  # redrawn, in the size and number it had
    assert len(build_dataset("street", root)) == 3
    assert orders[1:] == [{"size": [48, 64], "train": 3, "val": 2, "seed": 0}]
