"""Reading of labels, and label maps."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from PIL import Image

from dataset.read.header import read_facts
from dataset.read.image import check_label, read_image, read_label
from dataset.read.labelmap import LabelMap
from dataset.read.source import read_mapped
from tests.three_pictures import build, fails, save, save_palette

pytestmark = pytest.mark.fast

IDS = np.random.default_rng(1).integers(0, 3, (12, 16)).astype(np.uint8)
COLORS = np.array([[10, 20, 30], [200, 0, 7], [0, 0, 1]], np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_palettes_mean_colours_greys_or_ids(tmp_path, suffix):
    """Pillow's `convert` is the truth of colours and greys."""
    path = save_palette(tmp_path / f"a.{suffix}", 2 - IDS, COLORS[::-1])
    by_color = LabelMap({tuple(color): i for i, color in enumerate(COLORS.tolist())}, 3, "x")
    assert np.array_equal(np.asarray(Image.open(path).convert("RGB")), COLORS[IDS])
    assert np.array_equal(read_mapped(path, by_color), IDS)
    assert np.array_equal(read_mapped(path, LabelMap(None, 3, "x")), 2 - IDS)
    both = LabelMap({0: 0, 1: 1, 2: 2, **{tuple(color): i for i, color in enumerate(COLORS.tolist())}}, 3, "x")
    assert np.array_equal(read_mapped(path, both), IDS)
    half = LabelMap({0: 0, 1: 1, 2: 2, tuple(COLORS[0].tolist()): 0}, 3, "x")
    fails(["does not know the colours", "(200, 0, 7)"], read_mapped, path, half)
    grey = save_palette(tmp_path / f"b.{suffix}", 2 - IDS, [[2] * 3, [1] * 3, [0] * 3])
    assert np.array_equal(np.asarray(Image.open(grey).convert("L")), IDS)
    assert np.array_equal(read_label(grey), IDS) and np.array_equal(read_mapped(grey, LabelMap(None, 3, "x")), IDS)


def test_a_palette_may_end_before_255(tmp_path):
    """Pillow writes as many entries as `putpalette` was given, and the ignored pixels have none."""
    ids = np.where(np.arange(16) < 3, 255, IDS).astype(np.uint8)
    path = save_palette(tmp_path / "a.png", ids, [*COLORS.tolist(), *[[9, i, 9] for i in range(18)]])
    assert np.array_equal(read_mapped(path, LabelMap(None, 3, "x")), ids)
    by_color = LabelMap({tuple(color): i for i, color in enumerate(COLORS.tolist())}, 3, "x")
    fails("its palette has 21 colours, and none for the index 255", read_mapped, path, by_color)
    save_palette(path, ids, [[i] * 3 for i in range(21)])
    assert np.array_equal(read_label(path), ids)
    save_palette(path, ids, [[20 - i] * 3 for i in range(21)])
    fails("its palette has 21 greys, and none for the index 255", read_label, path)


def test_a_png_without_its_palette_is_named(tmp_path):
    data = save_palette(tmp_path / "a.png", IDS, COLORS).read_bytes()
    start, end = data.index(b"PLTE") - 4, data.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(data[:start] + data[end:])
    fails("a.png: not a readable picture (its palette is missing)", read_label, tmp_path / "a.png")


@pytest.mark.parametrize("palette", [False, True])
def test_damage_of_a_label_is_seen(tmp_path, palette):
    """Any changed byte of the coded pixels: a PNG has a checksum of each chunk."""
    ids = np.random.default_rng(0).integers(0, 3, (60, 80)).astype(np.uint8)
    path = save_palette(tmp_path / "a.png", ids, COLORS) if palette else save(tmp_path / "a.png", ids.astype(np.uint16))
    data = path.read_bytes()
    start = data.index(b"IDAT") + 4
    for place in range(start, data.index(b"IEND") - 8, 97):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        fails("a.png: not a readable", read_label, path)


@pytest.mark.parametrize("colors", [False, True])
@pytest.mark.parametrize("name", ["jpg", "jpg in tif", "webp"])
def test_lossy_labels_are_refused_by_their_compression(tmp_path, name, colors):
    path = tmp_path / "label.png"  # the suffix says nothing
    values = COLORS[IDS] if colors else IDS
    options = {"jpg": {"format": "JPEG"}, "jpg in tif": {"format": "TIFF", "compression": "jpeg"}}
    save(path, values, **options.get(name, {"format": "WEBP"}))
    fails(["label.png: a", "changes the ids along every edge"], read_label, path)
    fails("save labels as PNG", check_label, path, read_facts(path))


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "lerc", "webp", "jpegxl"])
def test_lossy_compressions_of_a_tiff_are_named(tmp_path, compression):
    """Also tiled, as satellites' pictures are, and those that Pillow does not know."""
    pytest.importorskip("imagecodecs")
    path, colors = tmp_path / "a.tif", np.tile(COLORS[IDS], (4, 4, 1))
    tifffile.imwrite(path, colors, tile=(16, 16), compression=compression, photometric="rgb")
    fails(["a.tif: a label in TIFF with ", "changes the ids"], read_label, path)
    assert read_image(path).shape == colors.shape


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0"])
def test_lossless_webp_labels_are_read(tmp_path, exif):
    path = save(tmp_path / "a.webp", COLORS[IDS], lossless=True, exif=exif)
    assert np.array_equal(read_label(path), COLORS[IDS])


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "i4", "u4"])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
def test_tiff_labels_of_any_depth_and_byte_order(tmp_path, byteorder, dtype, compression):
    path, ids = tmp_path / "a.tif", IDS.astype(dtype) + (0 if dtype == "u1" else 300)
    tifffile.imwrite(path, ids, byteorder=byteorder, compression=compression)
    label = read_label(path)
    assert label.dtype == (np.uint8 if dtype == "u1" else np.uint16) and np.array_equal(label, ids)


@pytest.mark.parametrize("highest", [2, 18, 255, 300, 65535])
def test_portable_maps_keep_their_numbers(tmp_path, highest):
    """Netpbm: numbers up to the highest, of two bytes above 255."""
    numbers = IDS.astype(">u2" if highest > 255 else "u1").tobytes()
    data = b"P5 16 12 %d\n" % highest + numbers
    (tmp_path / "a.pgm").write_bytes(data)
    assert np.array_equal(read_label(tmp_path / "a.pgm"), IDS)
    (tmp_path / "a.pgm").write_bytes(data * 2)
    fails("several pictures in one PPM", read_label, tmp_path / "a.pgm")


def test_labels_of_other_kinds_are_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.dstack([IDS] * 2), photometric="minisblack", planarconfig="contig")
    fails("a label that is a TIFF of 2 bands of uint8", read_label, path)
    tifffile.imwrite(path, COLORS[IDS].astype(np.uint16), photometric="rgb")
    fails("a label of colours that is a TIFF of 3 bands of uint16", read_label, path)
    tifffile.imwrite(path, IDS.astype(np.float32))
    fails("holds float32 values", read_label, path)
    tifffile.imwrite(path, 255 - IDS, photometric="miniswhite")
    fails("stored as their opposites", read_label, path)
    tifffile.imwrite(path, IDS.astype(np.int32) - 5)
    fails("holds numbers from -5 to -3", read_label, path)
    np.save(tmp_path / "a.npy", IDS.astype(">i8") + 300)
    assert np.array_equal(read_label(tmp_path / "a.npy"), IDS.astype(int) + 300)


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp", "a.mpo"])
def test_files_of_several_pictures_are_refused(tmp_path, name):
    first, second = (Image.fromarray(COLORS[each]) for each in (IDS, 2 - IDS))
    form = {"format": "MPO"} if name == "a.mpo" else {}
    first.save(tmp_path / name, save_all=True, append_images=[second], **form)
    fails([f"{name}: ", "save the one picture that is meant"], read_label, tmp_path / name)
    fails("save the one picture that is meant", read_facts, tmp_path / name)


def test_smaller_forms_and_masks_in_a_tiff_are_no_further_pictures(tmp_path):
    """As cloud-optimised GeoTIFFs have them; TIFF 6.0, NewSubfileType."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(IDS)
        file.write(IDS[::2, ::2], subfiletype=1)
        file.write(IDS > 0, subfiletype=4)
    assert np.array_equal(read_label(tmp_path / "a.tif"), IDS)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_tiff_labels_of_few_bits(tmp_path, bits):
    """Rows of ids, packed by hand (TIFF 6.0, section 4)."""
    ids = IDS % 2**bits
    packed = np.packbits(np.unpackbits(ids[:, :, None], axis=2)[:, :, 8 - bits :].reshape(12, -1), axis=1).tobytes()
    tags = ((256, 16), (257, 12), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, 12), (279, len(packed)))
    out = io.BytesIO(b"II*\0" + (8 + len(packed)).to_bytes(4, "little") + packed)
    out.seek(0, io.SEEK_END)
    out.write(len(tags).to_bytes(2, "little"))
    for tag, value in tags:
        out.write(tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + value.to_bytes(4, "little"))
    out.write(bytes(4))
    (tmp_path / "a.tif").write_bytes(out.getvalue())
    assert np.array_equal(read_label(tmp_path / "a.tif"), ids)


def test_labels_are_read_as_stored(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 4, (12, 16)).astype(np.uint8)
    palette = Image.fromarray(ids)
    palette.putpalette(rng.integers(0, 256, 768).astype(np.uint8).tolist())
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_label(tmp_path / "palette.png"), ids)
    for bits in (2, 4):
        low = Image.fromarray(ids)
        low.save(tmp_path / "low.png", bits=bits)
        assert np.array_equal(read_label(tmp_path / "low.png"), ids)
    Image.fromarray(ids > 1).save(tmp_path / "bit.png")
    assert np.array_equal(read_label(tmp_path / "bit.png"), ids > 1)
    deep = ids.astype(np.uint16) + 300
    assert np.array_equal(read_label(save(tmp_path / "deep.png", deep)), deep)
    for suffix in ("tif", "bmp"):
        assert np.array_equal(read_label(save(tmp_path / f"a.{suffix}", ids)), ids)
    Image.fromarray(np.dstack([ids, ids * 0 + 255]), "LA").save(tmp_path / "la.png")
    assert np.array_equal(read_label(tmp_path / "la.png"), ids)
    fails("a.jpg: a JPEG label", read_label, save(tmp_path / "a.jpg", ids))


def test_sixteen_bit_labels_pass_where_the_map_knows_the_ids(tree):
    save(tree / "label/a.png", np.full((12, 16), 2, np.uint16))
    assert set(np.unique(build(tree)[0]["label"])) == {2}
    save(tree / "label/a.png", np.full((12, 16), 1000, np.uint16))
    message = "label/a.png: value 1000 is not in the label map of custom (0..2 -> 0..2, 255 = ignored)"
    fails(message, build(tree).__getitem__, 0)
    label = build(tree, label_map={0: 0, 1: 1, 2: 2, 1000: 2})[0]["label"]
    assert set(np.unique(label)) == {2}


def test_value_outside_the_map_names_file_value_and_map(tree):
    label = np.asarray(Image.open(tree / "label/b.png")).copy()
    label[3, 4], label[5, 6] = 7, 9
    save(tree / "label/b.png", label)
    fails(
        [
            str(tree / "label/b.png"),
            "values 7, 9 are not in the label map of custom",
            "0..2 -> 0..2, 255 = ignored",
            "label_map",
        ],
        build(tree).__getitem__,
        1,
    )


def test_255_stays_ignored_unless_mapped(tree):
    label = np.zeros((12, 16), np.uint8)
    label[:6] = 255
    save(tree / "label/a.png", label)
    options = {"classes": ["back", "front"], "list_file": tree / "one.txt"}
    (tree / "one.txt").write_text("image/a.png label/a.png\n")
    assert set(np.unique(build(tree, **options)[0]["label"])) == {0, 255}
    mapped = build(tree, label_map={0: 0, 255: 1}, **options)[0]["label"].numpy()
    assert np.array_equal(mapped, label // 255)


def test_label_of_three_channels(tree):
    ids = np.asarray(Image.open(tree / "label/a.png"))
    save(tree / "label/a.png", np.dstack([ids] * 3))
    fails(["label/a.png", "three channels are equal: save one of them"], build(tree).__getitem__, 0)
    colors = np.array([[10, 20, 30], [200, 0, 7], [0, 0, 1]], np.uint8)
    save(tree / "label/a.png", colors[ids])
    fails(["label/a.png", 'label_map with the keys "r,g,b"'], build(tree).__getitem__, 0)
    by_color = {"10,20,30": 0, (200, 0, 7): 1, "0, 0, 1": 255}
    expected = np.where(ids == 2, 255, ids)
    dataset = build(tree, label_map=by_color)
    assert np.array_equal(dataset[0]["label"].numpy(), expected)
    fails("a label of ids, but custom maps colours only", dataset.__getitem__, 1)
    save(tree / "label/a.png", colors[ids] + np.uint8(1))
    fails(["(1, 1, 2), (11, 21, 31), (201, 1, 8)", "rgb (10, 20, 30) -> 0"], dataset.__getitem__, 0)


def test_label_of_another_size(tree):
    save(tree / "label/a.png", np.zeros((11, 16), np.uint8))
    fails(["label/a.png: the label is 16x11", "image/a.png 16x12"], build(tree).__getitem__, 0)


@pytest.mark.parametrize(
    "mapping, message",
    [
        ({0: 3}, "0 -> 3, but the 3 classes have the ids 0 to 2"),
        ({0: "1"}, "0 -> 1"),
        ({-1: 0}, "-1"),
        ({70000: 0}, "70000"),
        ({"1,2": 0}, "'1,2' is no colour"),
        ({"a,b,c": 0}, "is no colour"),
        ({(0, 0, 256): 0}, "is no colour"),
    ],
)
def test_faulty_label_map(mapping, message):
    fails(message, LabelMap, mapping, 3, "custom")


def test_label_map_equals_a_loop(tmp_path):
    rng = np.random.default_rng(0)
    keys, values = rng.permutation(256)[:200].tolist(), rng.integers(0, 19, 200).tolist()
    mapping = dict(zip(keys, values, strict=True))
    raw = rng.choice(list(mapping), (30, 40)).astype(np.uint8)
    expected = np.array([[mapping[int(value)] for value in row] for row in raw])
    assert np.array_equal(LabelMap(mapping, 19, "x").apply(raw), expected)


def test_colours_are_looked_up_by_several_threads_at_once():
    """A second thread comes while the first is at making the table of colours."""
    map_ = LabelMap({"1,2,3": 0, "4,5,6": 1}, 2, "test")
    label = np.array([[(1, 2, 3), (4, 5, 6)]], np.uint8)
    found = []

    class Interrupted(dict):
        def items(self):
            for number, item in enumerate(super().items()):
                if number == 1 and not found:
                    found.append(None)
                    with ThreadPoolExecutor(1) as second:
                        found[0] = second.submit(map_.apply, label).result()
                yield item

    map_.colors = Interrupted(map_.colors)
    assert map_.apply(label).tolist() == [[0, 1]] == found[0].tolist()
