"""ImageNet weights of a backbone by its name alone.

Through the downloads of timm and torchvision, which are imported where they are asked: the two take longer to import
than all else that a command needs.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from model.published.layout import IMAGENET, Preprocessing
from model.table import ModelError

# Backbone -> who has its weights, and under which name. "timm/NAME" and "torchvision/NAME" are their own.
SOURCES = {
    **{f"resnet{depth}": f"timm/resnet{depth}s.gluon_in1k" for depth in (50, 101, 152)},
    **{f"resnet{depth}_v1s": f"timm/resnet{depth}s.gluon_in1k" for depth in (50, 101, 152)},
    **{f"resnet{depth}_v1c": f"timm/resnet{depth}c.gluon_in1k" for depth in (50, 101, 152)},
    **{f"hrnet_w{width}": f"timm/hrnet_w{width}" for width in (18, 32, 40, 48)},
    "hrnet_w18_small_v2": "timm/hrnet_w18_small_v2",
    **{f"convnext_{size}": f"timm/convnext_{size}.fb_in1k" for size in ("tiny", "small", "base", "large")},
    **{f"swin_{size}": f"timm/swin_{size}_patch4_window7_224.ms_in1k" for size in ("tiny", "small", "base")},
    "swin_large": "timm/swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    **{f"mit_b{size}": f"hub/nvidia/mit-b{size}" for size in range(6)},
    "mobilenet_v2": "torchvision/mobilenet_v2",
    "vgg16": "torchvision/vgg16",
    **{f"densenet{depth}": f"torchvision/densenet{depth}" for depth in (121, 161, 169, 201)},
    "mobilenet_v3_large": "torchvision/mobilenet_v3_large",
}


class ImageNetWeights(NamedTuple):
    """Weights of a classification network, and what it expects of images."""

    source: str
    tensors: dict[str, torch.Tensor]
    preprocessing: Preprocessing


def imagenet_weights(backbone: str) -> ImageNetWeights:
    """Fetch the ImageNet weights of a backbone.

    Earlier downloads are cached.

    Args:
        backbone: a key of `BACKBONES` or "timm/<name>", whose tag says which of several weights are meant.

    Returns:
        The weights under their publisher's keys, for `load_backbone_weights`.

    Raises:
        ModelError: nobody is known to have weights for this backbone.
        OSError: they cannot be fetched; says where they are and where to put them by hand.
    """
    source = backbone if backbone.startswith(("timm/", "torchvision/")) else SOURCES.get(backbone)
    if source is None:
        raise ModelError(
            f"no ImageNet weights of backbone {backbone!r} can be fetched: initmodel/README.md says where its file "
            "comes from; put it there, then model.weights=initmodel/FILE"
        )
    publisher, _, name = source.partition("/")
    return {"timm": _from_timm, "torchvision": _from_torchvision, "hub": _from_hub}[publisher](name)


def _from_timm(name: str) -> ImageNetWeights:
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ModelError(f"timm has no weights for {name!r}; start from random ones with model.weights=none")
    place = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else str(config.url)
    tensors = _fetch(lambda: timm.create_model(name, pretrained=True).state_dict(), f"timm/{name}", place)
    mean, std = (tuple(255 * value for value in values) for values in (config.mean, config.std))
    return ImageNetWeights(f"timm/{config.architecture}.{config.tag}", tensors, Preprocessing(mean, std))


def _from_torchvision(name: str) -> ImageNetWeights:
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).IMAGENET1K_V1
    load = partial(weights.get_state_dict, progress=False, check_hash=True)
    return ImageNetWeights(f"torchvision {weights}", _fetch(load, f"torchvision/{name}", weights.url), IMAGENET)


def _from_hub(name: str) -> ImageNetWeights:
    from timm.models import load_state_dict_from_hf

    place = f"https://huggingface.co/{name}"
    return ImageNetWeights(place, _fetch(partial(load_state_dict_from_hf, name), name, place), IMAGENET)


def _fetch(load: Callable[[], dict[str, torch.Tensor]], name: str, place: str) -> dict[str, torch.Tensor]:
    try:
        return load()
    except (OSError, RuntimeError) as error:  # no network, no such file; a file with another hash
        reason = str(error).partition("\n")[0]
        raise OSError(
            f"the ImageNet weights of {name} cannot be fetched from {place} ({reason}). Where there is no network, "
            "download them elsewhere, put the file into initmodel/, and give model.weights=initmodel/FILE"
        ) from error
