"""Prints docs/models.md: networks, their papers, costs, published numbers, and checkpoints that load.

python -m tool.doc.models > docs/models.md
"""

import re
from pathlib import Path
from typing import NamedTuple

from model import MODELS, build_model
from model.backbone import BACKBONES, build_backbone
from model.layer.shapes import shapes_only
from model.published.table import LAYOUTS
from model.table import load
from tool.bench.flops import COUNTED, count
from tool.shared import cli
from tool.shared.card import paper_of
from util.config.load import load as read_experiment

SIZE = (512, 1024)  # height and width of the image that is counted
CLASSES = 19
# A network that takes features of one size, which is that of its published crop.
SIZES = {"psanet": (480, 480)}

HEAD = f"""# Networks

Made from the code by `python -m tool.doc.models > docs/models.md`. A network is `model.name` of an experiment
([experiments.md](experiments.md)); a published checkpoint of the families below becomes one of ours with
`python -m tool.import_weights FILE`, or is scored as it is ([from_mmseg.md](from_mmseg.md)). How to add a network:
[new_network.md](new_network.md).

## What there is

Parameters and multiply-accumulates with {CLASSES} classes on the default backbone, in training form (auxiliary heads
included in the parameters, not in the MACs), for one image of {SIZE[0]} x {SIZE[1]}. Counted:
{COUNTED}; [benchmark.md](benchmark.md) says how others count.
`python -m tool.bench params DATASET EXPERIMENT` counts any other.
"""

PUBLISHED_HEAD = """## Published numbers

By whom, on what. Ours stand in [results.md](results.md) and in the heads of the experiments.

| network | on | data | mIoU | published by |
|---|---|---|---|---|"""

FAMILIES_HEAD = """## Checkpoints that load

Recognised by their keys alone and loaded strictly, in the names of these families. Mean and std are R, G, B on the
scale 0..255; the imported checkpoint holds them, and every later use takes them from there.

| family | network | mean | std | channels |
|---|---|---|---|---|"""

BACKBONES_HEAD = """## Backbones

Any of these, and any of timm's as `timm/NAME`. Parameters are those of the features, in millions.

| backbone | parameters |
|---|---|"""


class Number(NamedTuple):
    """A published score: network, backbone, data, and where it is said."""

    network: str
    on: str
    data: str
    miou: str
    source: str


MMSEG = "MMSegmentation, its metafiles, one scale"
VISION = "torchvision, the weights' own description"
VAL, ADE = "Cityscapes val", "ADE20K val"
COCO = "COCO val2017, classes of VOC"
NUMBERS = (
    *(
        Number(network, on, VAL, miou, MMSEG)
        for network, on, miou in (
            ("ann", "resnet50_v1c", "77.34"),
            ("bisenet", "torchvision/resnet18", "75.16"),
            ("bisenetv2", "", "75.76"),
            ("cgnet", "", "68.27"),
            ("danet", "resnet50_v1c", "79.34"),
            ("ddrnet", "23-slim; 23", "77.84; 79.99"),
            ("deeplabv3", "resnet50_v1c; resnet101_v1c", "79.32; 80.20"),
            ("deeplabv3plus", "resnet50_v1c; resnet101_v1c", "80.09; 80.97"),
            ("encnet", "resnet50_v1c; resnet101_v1c", "77.94; 78.55"),
            ("fastscnn", "", "70.96"),
            ("fcn", "resnet50_v1c; resnet101_v1c", "73.61; 75.13"),
            ("icnet_ppm", "resnet50_v1c", "76.29"),
            ("pidnet", "S; M; L", "78.74; 80.22; 80.89"),
            ("pspnet", "resnet50_v1c; resnet101_v1c", "78.55; 79.76"),
            ("segformer", "mit_b0 to mit_b5", "76.54, 78.56, 81.08, 81.94, 81.89, 82.25"),
            ("stdc", "stdc1; stdc2", "74.94; 76.67"),
            ("upernet", "resnet50_v1c; resnet101_v1c", "78.19; 79.40"),
        )
    ),
    Number("segformer", "mit_b0 to mit_b5", ADE, "37.41, 40.97, 45.58, 47.82, 48.46, 49.13", MMSEG),
    Number("upernet", "convnext_tiny; convnext_small", ADE, "46.11; 48.56", MMSEG),
    Number("upernet", "swin_tiny; swin_small", ADE, "44.41; 47.72", MMSEG),
    Number("fcn", "torchvision/resnet50; resnet101", COCO, "60.5; 63.7", VISION),
    Number("deeplabv3", "torchvision/resnet50; resnet101", COCO, "66.4; 67.4", VISION),
    Number("deeplabv3", "mobilenet_v3_large", COCO, "60.3", VISION),
    Number("lraspp", "mobilenet_v3_large", COCO, "57.9", VISION),
    Number("pidnet", "M; L", VAL, "79.9; 80.9", "XuJiacong/PIDNet, its readme"),
    Number("ddrnet", "23", VAL, "79.5", "ydhongHIT/DDRNet, its readme"),
    Number("stdc", "stdc1; stdc2, at scale 0.5", VAL, "72.22; 74.24", "MichaelFan01/STDC-Seg, its evaluation script"),
    Number("hrnet", "hrnet_w18_small_v2; hrnet_w48", VAL, "76.2; 81.1", "HRNet, its readmes, one scale"),
    Number("hrnet_ocr", "hrnet_w48", VAL, "81.6", "HRNet, its readmes, one scale"),
    Number("cgnet", "", "CamVid test", "65.6", "Wu et al., for the file in wutianyiRosun/CGNet"),
    Number("espnet", "", "CamVid test", "55.64", "sacmehta/ESPNet, for its file"),
)


def network_rows() -> list[str]:
    """Give a row for each network; nothing is computed."""
    rows = ["| network | paper | default backbone | parameters, M | GMAC |", "|---|---|---|---|---|"]
    for name, path in MODELS.items():
        builder = load(path)
        size = SIZES.get(name, SIZE)
        with shapes_only():
            model = build_model(name, CLASSES)
        cost = count(model, size)
        note = "" if size == SIZE else f" at {size[0]} x {size[1]}"
        backbone = f"`{model.spec['backbone']}`, or any" if model.spec["backbone"] else "its own"
        paper = paper_of(builder)
        rows.append(f"| `{name}` | {paper} | {backbone} | {cost.parameters / 1e6:.2f} | {cost.macs / 1e9:.1f}{note} |")
    return rows


def experiment_numbers(root: Path) -> list[Number]:
    """Read the published numbers in the heads of the experiments."""
    numbers = []
    for path in sorted(root.glob("*/*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        head = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
        found = re.search(r"Published: ([\d.]+) mIoU on (\w+)(.*?) Measured:", head)
        if found is not None:
            model = read_experiment(path).config.model
            data = f"{path.parent.name} {found[2]}"
            numbers.append(Number(model.name, model.backbone or "", data, found[1], found[3].strip(" ,;.")))
    return numbers


def family_rows() -> list[str]:
    """Give a row for each family and network of the layouts."""
    rows: dict[str, str] = {}
    for layout in LAYOUTS:
        wanted = layout.preprocessing
        network = f"`{layout.model}`" if layout.model else "a backbone alone"
        mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (wanted.mean, wanted.std))
        row = f"| {layout.source} | {network} | {mean} | {std} | {wanted.channel_order} |"
        rows.setdefault(row, row)
    return list(rows)


def backbone_rows() -> list[str]:
    """Give a row for each backbone of the table."""
    rows = []
    for name in BACKBONES:
        with shapes_only():
            backbone = build_backbone(name)
        rows.append(f"| `{name}` | {sum(value.numel() for value in backbone.parameters()) / 1e6:.2f} |")
    return rows


def page(root: Path = Path("config")) -> str:
    """Write the page."""
    numbers = sorted((*NUMBERS, *experiment_numbers(root)), key=lambda number: number.network)
    scores = [f"| `{one.network}` | {one.on} | {one.data} | {one.miou} | {one.source} |" for one in numbers]
    parts = (
        [HEAD, *network_rows(), ""],
        [PUBLISHED_HEAD, *scores, ""],
        [FAMILIES_HEAD, *family_rows(), ""],
        [BACKBONES_HEAD, *backbone_rows()],
    )
    return "\n".join(line for part in parts for line in part)


def main() -> int:
    print(page())
    return 0


if __name__ == "__main__":
    cli.command(main)
