"""Entry points of torch.hub: networks, and trained ones as functions from pictures to masks.

    import torch
    segmenter = torch.hub.load("PATH/OF/THIS/FOLDER", "segmenter", source="local", file="last.pth")
    mask = segmenter("photo.jpg").mask                  # uint8 (H, W), the class of each pixel

The other entries are `network` and `trained`.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from model import build_model
from tool.shared.hub import local_file
from tool.shared.network import rebuild
from tool.shared.plugins import use
from tool.shared.published import read_ours
from tool.shared.segmenter import Segmenter

dependencies = ["torch", "torchvision", "numpy", "cv2", "PIL", "yaml", "pydantic", "safetensors", "huggingface_hub"]

__all__ = ["network", "segmenter", "trained"]


def network(name: str, num_classes: int, backbone: str | None = None, **options: Any) -> nn.Module:
    """Build a network with freshly initialised weights.

    Args:
        name: as in docs/models.md, for example "pspnet".
        num_classes: channels of the logits.
        backbone: None takes the network's own default.
        options: further arguments of the network.

    Returns:
        The network; its output is a dict, whose "out" are logits (N, num_classes, H, W) for images (N, 3, H, W).
    """
    return build_model(name, num_classes, backbone, **options)


def trained(file: str, plugins: Sequence[str] = ()) -> nn.Module:
    """Return the trained network of a checkpoint, in evaluation mode.

    Args:
        file: a checkpoint of ours (.pth, .safetensors), or a published one of a known family; hf://owner/name is
            fetched from the Hugging Face Hub.
        plugins: code outside the project that it needs; see docs/own_code.md.
    """
    use(plugins)
    file = local_file(file)
    return rebuild(read_ours(file), file).eval()


def segmenter(file: str, **settings: Any) -> Segmenter:
    """Return a checkpoint as a function from pictures to masks.

    Args:
        file: as for `trained`.
        settings: device, half, tile and plugins, as docs/predict.md says.
    """
    return Segmenter(file, **settings)
