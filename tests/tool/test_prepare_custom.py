"""`tool.prepare custom`: from the user's folders to lists and an experiment."""

import json
import shlex

import numpy as np
import pytest
import yaml

from dataset import build_dataset
from tests.official_trees import save
from tool.prepare import main as prepare
from tool.shared.cli import command
from util.config import load


def main(root, *options):
    """The exit status of the command, whose experiment goes to ROOT/config."""
    with pytest.raises(SystemExit) as ended:
        command(lambda: prepare(["custom", "--root", str(root), "--config", str(root / "config"), *options]))
    return ended.value.code


def folders(root, values=(0, 255), count=10):
    """Pictures of 64 x 96, the upper quarter of whose masks holds the second value."""
    for i in range(count):
        mask = np.full((64, 96), values[0], np.uint8)
        mask[:16] = values[1]
        save(root, f"images/{i}.jpg", np.full((64, 96, 3), 10 * i, np.uint8))
        save(root, f"masks/{i}_mask.png", mask)


def experiment(root, name="mine"):
    return yaml.safe_load((root / f"config/{name}_fcn18.yaml").read_text())


def dataset_of(root, split="train"):
    data = experiment(root)["data"]
    return build_dataset("custom", root, split=split, classes=data["classes"], label_map=data.get("label_map"))


def test_binary_masks(tmp_path, capsys):
    folders(tmp_path)
    save(tmp_path, "images/lone.jpg")
    assert main(tmp_path) == 0
    printed = capsys.readouterr().out
    assert (
        "255 on disk: foreground, 25.00% of the pixels" in printed and "mIoU is the mean over both classes" in printed
    )
    assert "left out: 1 picture without a mask (images/lone.jpg)" in printed
    assert "train 8, val 2 pictures, drawn with --seed 0" in printed
    config = f"--config {tmp_path}/config/mine_fcn18.yaml"
    assert printed.rstrip().splitlines()[-1].strip() == f"python -m tool.train {config}"
    assert f"Score afterwards: python -m tool.test {config}" in printed
    found = experiment(tmp_path)
    assert found["data"]["label_map"] == {0: 0, 255: 1} and found["augment"]["crop"] == [64, 96]
    resolved = load(tmp_path / "config/mine_fcn18.yaml", ["train.epochs=3"]).config
    assert resolved.model.name == "fcn" and resolved.model.weights == "none" and resolved.train.epochs == 3
    assert resolved.data.classes == ("background", "foreground") and resolved.data.root == str(tmp_path)
    assert len(dataset_of(tmp_path)) == 8 and len(dataset_of(tmp_path, "val")) == 2
    assert dataset_of(tmp_path)[0]["label"].float().mean() == 0.25
    # Frequencies 0.75 and 0.25, their median 0.5.
    assert "class_weights: [0.6667, 2.0]" in (tmp_path / "config/mine_fcn18.yaml").read_text()
    assert main(tmp_path) == 0, "a second time nothing changes"


def test_names_and_ignored_values(tmp_path, capsys):
    folders(tmp_path, (3, 7))
    assert main(tmp_path, "--config", str(tmp_path / "other")) == 0
    assert "names in this order: --classes A,B,...; what is no class: --ignore VALUE" in capsys.readouterr().out
    assert main(tmp_path, "--classes", "sea,sky") == 0
    assert experiment(tmp_path)["data"]["label_map"] == {3: 0, 7: 1}
    assert experiment(tmp_path)["data"]["classes"] == ["sea", "sky"]
    assert main(tmp_path, "--classes", "sea", "--ignore", "7") == 2
    assert "mine_fcn18.yaml exists with other lines" in capsys.readouterr().err
    assert main(tmp_path, "--classes", "sea", "--ignore", "7", "--force") == 0
    assert dataset_of(tmp_path)[0]["label"].unique().tolist() == [0, 255]
    assert main(tmp_path, "--classes", "a,b,c") == 2
    assert "3 names of classes, but the masks hold 2 values: 3, 7" in capsys.readouterr().err


def test_colours_and_folders_of_splits(tmp_path, capsys):
    for split, colour in (("train", (0, 0, 9)), ("train", (0, 8, 0)), ("valid", (0, 0, 9)), ("test", (0, 8, 0))):
        name = f"{split}/{'ab'[colour[1] > 0]}"
        save(tmp_path, f"{split}/images/{name[-1]}.jpg")
        save(tmp_path, f"{split}/masks/{name[-1]}.png", colour)
    assert main(tmp_path, "--classes", "sea,sky") == 0
    printed = capsys.readouterr().out
    assert "train 2, val 1, test 1 pictures, as the folders say" in printed
    assert "class 'sky' does not occur in val" in printed
    assert experiment(tmp_path)["data"]["label_map"] == {"0,0,9": 0, "0,8,0": 1}
    assert dataset_of(tmp_path, "test")[0]["label"].unique().tolist() == [1]


def test_a_table(tmp_path):
    folders(tmp_path)
    lines = [f"images/{i}.jpg,masks/{9 - i}_mask.png,{'val' if i > 7 else 'train'}" for i in range(10)]
    (tmp_path / "pairs.csv").write_text("image,mask,split\n" + "\n".join(lines))
    assert main(tmp_path, "--table", str(tmp_path / "pairs.csv")) == 0
    assert (tmp_path / "val.txt").read_text() == "images/8.jpg masks/1_mask.png\nimages/9.jpg masks/0_mask.png\n"


def test_an_export(tmp_path, capsys):
    folders(tmp_path, count=2)
    outline = [0, 0, 96, 0, 96, 32, 0, 32]
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 64, "width": 96} for i in range(2)]
    shapes = [{"image_id": i, "category_id": 4, "segmentation": [outline], "area": 3072} for i in range(2)]
    document = {"images": images, "annotations": shapes, "categories": [{"id": 4, "name": "leaf"}]}
    (tmp_path / "coco.json").write_text(json.dumps(document))
    assert main(tmp_path, "--annotations", "coco.json") == 0
    assert "1 on disk: leaf, 50.00% of the pixels" in capsys.readouterr().out
    assert experiment(tmp_path)["data"]["classes"] == ["background", "leaf"]
    assert dataset_of(tmp_path)[0]["label"].float().mean() == 0.5
    (tmp_path / "coco.json").write_text(json.dumps(document).replace(".jpg", "_other.jpg"))
    assert main(tmp_path, "--annotations", "coco.json") == 2
    assert "none of its pictures (as 0_other.jpg) is among those of" in capsys.readouterr().err


def test_names_by_the_hundred_and_from_a_file(tmp_path, capsys):
    folders(tmp_path, (0, 1))
    names = [f"class number {i}" for i in range(120)]
    assert main(tmp_path, "--classes", ",".join(names)) == 0
    assert experiment(tmp_path)["data"]["classes"] == names
    (tmp_path / "names.txt").write_text("ﾁ\nsky\n", encoding="utf-8-sig")
    assert main(tmp_path, "--classes", str(tmp_path / "names.txt"), "--force") == 0
    assert experiment(tmp_path)["data"]["classes"] == ["ﾁ", "sky"]
    (tmp_path / "names.txt").write_bytes(b"\xe4\nsky\n")
    assert main(tmp_path, "--classes", str(tmp_path / "names.txt")) == 2
    assert "names.txt: not UTF-8 text; a line is the name of a class" in capsys.readouterr().err


def test_the_commands_can_be_pasted(tmp_path, capsys):
    """In a folder with a space, with names that YAML would take for something else."""
    folders(tmp_path, (0, 1))
    config = tmp_path / "con fig"
    assert main(tmp_path, "--config", str(config), "--classes", "no,null") == 0
    train = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(train) == ["python", "-m", "tool.train", "--config", f"{config}/mine_fcn18.yaml"]
    assert load(config / "mine_fcn18.yaml", []).config.data.classes == ("no", "null")


def test_lists_elsewhere(tmp_path):
    folders(tmp_path)
    assert main(tmp_path, "--out", str(tmp_path / "lists")) == 0
    assert experiment(tmp_path)["data"]["train_list"] == str(tmp_path / "lists/train.txt")
    assert not (tmp_path / "train.txt").exists()


def test_mistakes(tmp_path, capsys):
    assert main(tmp_path / "none") == 2
    assert "no such folder" in capsys.readouterr().err
    folders(tmp_path)
    for options, message in (
        (("--name", "my data"), "a new name of letters"),
        (("--name", "voc"), "a new name of letters"),
        (("--ignore", "red"), "an id such as 0, or a colour"),
        (("--val", "2"), "a share between 0 and 1"),
        (("--classes", "leaf,leaf"), "--classes: 'leaf' stands there twice"),
        (("--classes", "a\tb,c"), "or holds a control character"),
        (("--seed", "-1"), "--seed -1 --channels 3: from 0 on, and 1 to 512"),
        (("--channels", "0"), "--seed 0 --channels 0: from 0 on, and 1 to 512"),
        (("--range", "5", "1"), "two numbers, the lower one first"),
        (("--range", "2%", "198%"), "two numbers, the lower one first"),
        (("--range", "0", "nan"), "two numbers, the lower one first"),
        (("--network", "no-such"), "no-such"),
    ):
        assert main(tmp_path, *options) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    save(tmp_path, "masks/3_mask.png", np.zeros((5, 5), np.uint8))
    assert main(tmp_path) == 2
    assert "different sizes, 96 x 64 and 5 x 5" in capsys.readouterr().err
    assert not (tmp_path / "train.txt").exists()
