"""Pictures, lists and films in, masks out; three lines of Python; what is done is not done again."""

import io
import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import CLASSES, COLORS, failure
from tests.prediction import image_of, plain, run, write_checkpoint, write_image
from tool.predict import Segmenter
from tool.shared import predictions
from util import UserError


def test_every_kind_of_picture_gives_the_same_mask(tmp_path, toy_weights):
    segmenter, image = Segmenter(toy_weights), image_of()
    file = write_image(tmp_path / "a.png")
    given = [file, str(file), Image.fromarray(image), image, torch.from_numpy(image).permute(2, 0, 1)]
    expected = plain(toy_weights, image)
    results = segmenter(given)
    assert len(results) == 5 and results[0].classes == CLASSES
    for result in results:
        assert result.mask.dtype == np.uint8 and np.array_equal(result.mask, expected)
        assert result.probabilities.dtype == np.float32 and result.probabilities.shape == (3, 48, 64)
        assert np.array_equal(result.probabilities.argmax(0), expected)
    mixed = (image.astype(float) + np.array(COLORS)[expected]) / 2
    assert np.abs(results[0].overlay() - mixed).max() <= 0.5


def test_the_protocol_is_that_of_the_checkpoint(tmp_path, toy_weights):
    protocol = {"scales": [0.5, 1.5], "flip": True, "window": [32, 32], "stride_rate": 0.5, "base_size": None}
    weights = write_checkpoint(tmp_path / "toy.pth", protocol=protocol)
    expected = plain(weights, image_of(), scales=(0.5, 1.5), flip=True, window=(32, 32), stride_rate=0.5)
    assert np.array_equal(Segmenter(weights)(image_of()).mask, expected)


def test_tiles_give_the_untiled_result_inside_tiles(toy_weights):
    image = image_of(size=(225, 321))
    whole, tiled = (Segmenter(toy_weights, tile=tile)(image) for tile in (None, 161))
    assert tiled.probabilities.shape == whole.probabilities.shape
    apart = np.abs(tiled.probabilities - whole.probabilities).max(0)
    inside = apart[16:80, 16:80]  # of the first tile, where the network sees no border
    assert inside.max() < 1e-5 and np.mean(tiled.mask == whole.mask) > 0.98
    assert np.array_equal(tiled.mask, tiled.probabilities.argmax(0))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"uint8 \(H, W, 3\)"),
        (np.zeros((4, 4, 3), np.float32), "not float32"),
        (np.zeros((0, 4, 3), np.uint8), "uint8"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "uint8"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8, device="meta"), "meta"),
        (Image.new("F", (4, 4)), "8 bits"),
        (b"\x89PNG", "PIL.Image.open"),
        (7, "not int"),
    ],
)
def test_other_pictures_are_refused(toy_weights, picture, message):
    with pytest.raises(ValueError, match=message):
        Segmenter(toy_weights)(picture)


def test_mistakes_of_the_constructor(tmp_path, toy_weights):
    with pytest.raises(FileNotFoundError, match="none.pth"):
        Segmenter(tmp_path / "none.pth")
    with pytest.raises(UserError, match="tile"):
        Segmenter(toy_weights, tile=1)
    with pytest.raises(UserError, match="device 'nonsense'"):
        Segmenter(toy_weights, device="nonsense")


def test_a_photo_is_turned_upright_as_by_the_reader(tmp_path, toy_weights):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(image_of()).save(tmp_path / "a.png", exif=exif)
    segmenter = Segmenter(toy_weights)
    path, opened = segmenter(tmp_path / "a.png"), segmenter(Image.open(tmp_path / "a.png"))
    assert path.mask.shape == (64, 48) and np.array_equal(path.mask, opened.mask)


def test_folders_lists_and_the_standard_input(tmp_path, toy_weights, monkeypatch):
    folder, out = tmp_path / "in", tmp_path / "out"
    for seed, name in enumerate(("a.png", "sub/b.png", "c.png", "c.jpg", ".hidden.png")):
        write_image(folder / name, seed)
    (folder / "list.txt").write_text("a.png\nsub/b.png\n")
    assert run(toy_weights, folder, "--out", out) == 0
    masks = {str(path.relative_to(out)) for path in out.rglob("*.png")}
    assert masks == {"a.png", "sub/b.png", "c.png.png", "c.jpg.png"}
    assert np.array_equal(cv2.imread(str(out / "sub/b.png"), cv2.IMREAD_UNCHANGED), plain(toy_weights, image_of(1)))
    for given, place in ((folder / "list.txt", "listed"), ("-", "piped")):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{folder}/a.png\n{folder}/sub/b.png\n"))
        assert run(toy_weights, given, "--out", tmp_path / place) == 0
        assert sorted(path.name for path in (tmp_path / place).glob("*.png")) == ["a.png", "b.png"]
    write_image(tmp_path / "other" / "a.png", 9)
    assert run(toy_weights, folder / "a.png", tmp_path / "other" / "a.png", "--out", tmp_path / "two") == 0
    assert {str(p.relative_to(tmp_path / "two")) for p in (tmp_path / "two").rglob("*.png")} == {
        "in/a.png",
        "other/a.png",
    }


def test_a_bad_file_is_listed_at_the_end_and_stops_nothing(tmp_path, toy_weights, capsys):
    write_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    assert run(toy_weights, tmp_path / "in", tmp_path / "gone.png", "--out", tmp_path / "out") == 1
    told = "".join(capsys.readouterr())
    assert "b.png: not a readable picture" in told and "gone.png: no such picture" in told and "2 inputs" in told
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["a.png"]


def test_what_is_done_is_not_done_again_and_a_cut_line_is(tmp_path, toy_weights, monkeypatch):
    for name in "abc":
        write_image(tmp_path / "in" / f"{name}.png")
    out, seen = tmp_path / "out", []
    write = predictions.Predictions.write
    monkeypatch.setattr(predictions.Predictions, "write", lambda s, t, p, r: (seen.append(t.name), write(s, t, p, r)))
    assert run(toy_weights, tmp_path / "in", "--out", out) == 0
    index = out / predictions.INDEX
    index.write_text(index.read_text()[:-20])  # as a kill leaves it
    assert run(toy_weights, tmp_path / "in", "--out", out) == 0
    assert seen == ["a.png", "b.png", "c.png", "c.png"]
    (out / "a.png").unlink()
    assert run(toy_weights, tmp_path / "in", "--out", out) == 0
    assert seen[4:] == ["a.png"]


def test_results_of_another_checkpoint_are_not_mixed(tmp_path, toy_weights, capsys):
    photo = write_image(tmp_path / "a.png")
    assert run(toy_weights, photo, "--out", tmp_path / "out") == 0
    other = write_checkpoint(tmp_path / "other.pth", seed=1)
    assert "another checkpoint and sha256" in failure(capsys, run, other, photo, "--out", tmp_path / "out")


def test_processes_share_the_pictures_and_one_index(tmp_path, toy_weights, monkeypatch):
    for name in "abcde":
        write_image(tmp_path / "in" / f"{name}.png")
    found = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        found.append([*predictions.share_of_this_process().of(dict.fromkeys("abcde", ""))])
        assert run(toy_weights, tmp_path / "in", "--out", tmp_path / "out") == 0
    assert found == [["a", "c", "e"], ["b", "d"]]
    lines = [json.loads(line) for line in (tmp_path / "out" / predictions.INDEX).read_text().splitlines()]
    assert sorted(line["mask"] for line in lines[1:]) == [f"{name}.png" for name in "abcde"]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    share = predictions.share_of_this_process()  # the third of four tasks, the second of two processes
    assert [*share.of(dict.fromkeys("abcdefgh", ""))] == ["f"]


def test_pictures_and_annotations_beside_the_masks(tmp_path, toy_weights):
    photo, out = write_image(tmp_path / "a.png"), tmp_path / "out"
    assert run(toy_weights, photo, "--out", out, "--save", "color,overlay,polygons,rle") == 0
    mask = plain(toy_weights, image_of())
    color = cv2.cvtColor(cv2.imread(str(out / "color" / "a.png")), cv2.COLOR_BGR2RGB)
    assert np.array_equal(color, np.array(COLORS, np.uint8)[mask])
    found = json.loads((out / "rle" / "a.json").read_text())["annotations"]
    for each in found:
        pixels = np.repeat(np.arange(len(each["segmentation"]["counts"])) % 2, each["segmentation"]["counts"])
        assert np.array_equal(pixels.reshape(mask.shape, order="F"), mask == each["category_id"])
        assert each["area"] == (mask == each["category_id"]).sum() and each["category"] in CLASSES
    assert (out / "overlay" / "a.png").is_file() and (out / "polygons" / "a.json").is_file()


def test_a_film_becomes_a_film_and_masks_if_asked(tmp_path, toy_weights):
    film, out = tmp_path / "film.avi", tmp_path / "out"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (64, 48))
    for seed in range(3):
        writer.write(image_of(seed))
    writer.release()
    assert run(toy_weights, film, "--out", out, "--save", "mask") == 0
    result = cv2.VideoCapture(str(out / "film.mp4"))
    assert result.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5) and result.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert sorted(path.name for path in (out / "film").iterdir()) == ["000000.png", "000001.png", "000002.png"]


def test_a_map_keeps_its_place_on_the_ground(tmp_path, toy_weights):
    rasterio = pytest.importorskip("rasterio")
    image, out = image_of(size=(225, 321)), tmp_path / "out"
    place = {"crs": "EPSG:25832", "transform": rasterio.Affine(0.2, 0, 500000, 0, -0.2, 5700000)}
    shape = {"height": 225, "width": 321, "count": 3, "dtype": "uint8"}
    with rasterio.open(tmp_path / "map.tif", "w", driver="GTiff", **shape, **place) as file:
        file.write(np.moveaxis(image, 2, 0))
    assert run(toy_weights, tmp_path / "map.tif", "--out", out, "--tile", "161") == 0
    with rasterio.open(out / "map.tif") as mask:
        assert mask.crs == place["crs"] and mask.transform == place["transform"]
        assert np.array_equal(mask.read(1), Segmenter(toy_weights, tile=161)(image).mask)
    lines = (out / predictions.INDEX).read_text().splitlines()
    assert json.loads(lines[1])["mask"] == "map.tif" and sum(json.loads(lines[1])["shares"].values()) == 1
    assert run(toy_weights, tmp_path / "map.tif", "--out", out, "--tile", "161") == 0  # done before
    assert (out / predictions.INDEX).read_text().splitlines() == lines
    before = (tmp_path / "map.tif").read_bytes()
    assert run(toy_weights, tmp_path / "map.tif", "--out", tmp_path) == 1  # is not overwritten
    assert (tmp_path / "map.tif").read_bytes() == before


@pytest.mark.parametrize("words", [["--save", "masks"], ["--tile", "big"]])
def test_wrong_arguments(tmp_path, toy_weights, capsys, words):
    photo = write_image(tmp_path / "a.png")
    assert words[1] in failure(capsys, run, toy_weights, photo, *words)
