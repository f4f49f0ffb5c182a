"""Every layout of published checkpoints.

One file of keys a family; `load.py` does the rest.
"""

from model.published import (
    backbone,
    bisenet,
    branches,
    cgnet,
    espnet,
    espnetv2,
    fastscnn,
    hrnet,
    icnet,
    mmseg,
    segformer,
    semanticflow,
    semseg,
    sketchfill,
    timm,
    torchvision,
    tramac,
    tramac_context,
    upernet,
)

# A layout that comes first wins where a checkpoint fits two.
FILES = (
    sketchfill,
    semseg,
    semanticflow,
    cgnet,
    espnet,
    espnetv2,
    fastscnn,
    hrnet,
    bisenet,
    branches,
    icnet,
    segformer,
    tramac,
    tramac_context,
    mmseg,
    torchvision,
    upernet,
    backbone,
    timm,
)
LAYOUTS = tuple(layout for file in FILES for layout in file.LAYOUTS)
