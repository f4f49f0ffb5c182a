"""Keys of UPerNet in transformers, and of its backbones.

These are ConvNeXt and Swin in their ImageNet files.
"""

import re

import torch

from model.published.layout import Layout, Tensors

# Of two names the first is that in files, the second that in memory since version 5.
ATTENTION = re.compile(r"\.attention\.(?:self\.(query|key|value)|([qkv])_proj)\.")
INDEX = re.compile(r"\.(relative_position_index|attn_mask)$")  # what follows from the window's size

HF_CONVNEXT = (
    (r"^backbone\.embeddings\.patch_embeddings\.", "backbone.downsample.0.0."),
    (r"^backbone\.embeddings\.layernorm\.", "backbone.downsample.0.1."),
    (r"^backbone\.encoder\.stages\.(\d)\.downsampling_layer\.", r"backbone.downsample.\1."),
    (r"^backbone\.encoder\.stages\.(\d)\.layers\.", r"backbone.stages.\1."),
    (r"^(backbone\.stages.*)\.layernorm\.", r"\1.norm."),
    (r"\.layer_scale_parameter$", ".gamma"),
)

HF_SWIN = (
    (r"^backbone\.swin\.(?!layernorm)", "backbone."),
    (r"^backbone\.embeddings\.patch_embeddings\.projection\.", "backbone.embed."),
    (r"^backbone\.embeddings\.norm\.", "backbone.norm."),
    (r"^backbone\.encoder\.layers\.(\d)\.downsample\.", r"backbone.merge.\1."),
    (r"^backbone\.encoder\.layers\.(\d)\.blocks\.", r"backbone.stages.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (
        r"\.attention\.(?:self|relative_position_bias)\.relative_position_bias_table$",
        ".attn.relative_position_bias_table",
    ),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.(?:intermediate\.dense|mlp\.fc1)\.", ".mlp.0."),
    (r"\.(?:output\.dense|mlp\.fc2)\.", ".mlp.2."),
)

# Convolution and norm of a layer of the heads.
HF_LAYER = ((r"^((?:decode|auxiliary)_head\..*)\.conv\.", r"\1.0."), (r"\.batch_norm\.", ".1."))

HF_HEADS = {
    **{f"decode_head.psp_modules.{i}.1.{j}": f"ppm.stages.{i}.{j + 1}" for i in range(4) for j in range(2)},
    "decode_head.bottleneck": "context",
    "decode_head.lateral_convs": "lateral",
    "decode_head.fpn_convs": "smooth",
    "decode_head.fpn_bottleneck": "fuse",
    "decode_head.classifier": "classifier.1",
    "auxiliary_head.convs.0": "aux",
    "auxiliary_head.classifier": "aux.4",
}

BACKBONE = {f"backbone.{part}": f"backbone.{part}" for part in ("downsample", "stages", "embed", "norm", "merge")}
NORMS = {f"backbone.hidden_states_norms.stage{level + 1}": f"backbone.norms.{level}" for level in range(4)}


def join_attention(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Join queries, keys and values to one matrix, `attn.qkv`.

    What follows from the window's size is left out.
    """
    out: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if match := ATTENTION.search(name):
            parts.setdefault(ATTENTION.sub(".attn.qkv.", name), {})[(match[1] or match[2])[0]] = value
        elif not INDEX.search(name):
            out[name] = value
    for name, values in parts.items():
        out[name] = torch.cat([values[part] for part in "qkv" if part in values])
    return out


def _aux_width(tensors: Tensors) -> int:
    key = "auxiliary_head.convs.0.conv.weight"
    return tensors[key].shape[0] if key in tensors else 256


def _upernet(name: str, backbones: str, marker: str, patterns: tuple[tuple[str, str], ...]) -> Layout:
    return Layout(
        source=f"UPerNet on {name} (transformers)",
        model="upernet",
        backbones=backbones,
        marker=(marker, "decode_head.fpn_bottleneck.conv.weight"),
        patterns=(*patterns, *HF_LAYER),
        rename={**BACKBONE, **NORMS, **HF_HEADS},
        num_classes="decode_head.classifier.weight",
        heads={"aux": "auxiliary"},
        options={
            "width": lambda tensors: tensors["decode_head.fpn_bottleneck.conv.weight"].shape[0],
            "aux_width": _aux_width,
            "align_corners": False,
        },
        unused=("backbone.swin.layernorm",),
        convert=join_attention,
    )


LAYOUTS = (
    _upernet("ConvNeXt", r"convnext_\w+", "backbone.encoder.stages.0.layers.0.dwconv.weight", HF_CONVNEXT),
    _upernet("Swin", r"swin_\w+", "backbone.encoder.layers.0.blocks.0.layernorm_before.weight", HF_SWIN),
    _upernet("Swin", r"swin_\w+", "backbone.swin.encoder.layers.0.blocks.0.layernorm_before.weight", HF_SWIN),
    Layout(
        source="ConvNeXt, ImageNet (facebookresearch/ConvNeXt)",
        model=None,
        backbones=r"convnext_\w+",
        marker="downsample_layers.0.0.weight",
        rename={"downsample_layers": "downsample", "stages": "stages"},
        unused=("norm", "head"),
    ),
    Layout(
        source="ConvNeXt, ImageNet (timm)",
        model=None,
        backbones=r"convnext_\w+",
        marker="stages.0.blocks.0.conv_dw.weight",
        patterns=(
            (r"^stages\.(\d)\.downsample\.", r"downsample.\1."),
            (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
            (r"\.conv_dw\.", ".dwconv."),
            (r"\.mlp\.fc([12])\.", r".pwconv\1."),
        ),
        rename={"stem": "downsample.0", "downsample": "downsample", "stages": "stages"},
        unused=("head",),
    ),
    *(
        Layout(
            source=f"Swin, ImageNet ({publisher})",
            model=None,
            backbones=r"swin_\w+",
            marker=f"layers.{first + 2}.downsample.reduction.weight",
            patterns=((r"\.mlp\.fc1\.", ".mlp.0."), (r"\.mlp\.fc2\.", ".mlp.2.")),
            rename={
                "patch_embed.proj": "embed",
                "patch_embed.norm": "norm",
                **{f"layers.{level}.blocks": f"stages.{level}" for level in range(4)},
                **{f"layers.{level + first}.downsample": f"merge.{level}" for level in range(3)},
            },
            unused=("norm", "head"),
            convert=join_attention,
        )
        for publisher, first in (("timm", 1), ("microsoft/Swin-Transformer", 0))
    ),
)
