"""Keys of published SegFormer checkpoints: the authors', MMSegmentation's and those of transformers."""

import re

import torch

from model.published.layout import CONV_MODULE, Layout, Tensors, under

Dict = dict[str, torch.Tensor]

# The attention's two parts by the names that transformers has for them, in files and in memory.
KEY_VALUE = {"attention.self.key": "attention.self.value", "attention.k_proj": "attention.v_proj"}


def merge_keys_and_values(tensors: Dict) -> Dict:
    """Join the matrices of keys and values to `kv`.

    It stands in the place of the keys.
    """
    out = {}
    for name, value in tensors.items():
        for key, partner in KEY_VALUE.items():
            if f".{key}." in name and name.replace(key, partner) in tensors:
                out[name.replace(key, "attn.kv")] = torch.cat([value, tensors[name.replace(key, partner)]])
                break
        else:
            if not any(f".{partner}." in name for partner in KEY_VALUE.values()):
                out[name] = value
    return linear_head(out)


def linear_head(tensors: Dict) -> Dict:
    """Make the head's linear layers 1x1 convolutions.

    The levels are fused from fine to coarse, not the other way round.
    """
    out = dict(tensors)
    for name, value in tensors.items():
        if re.fullmatch(r"decode_head\.linear_(c\d?|projections)\b.*\.proj\.weight", name) and value.ndim == 2:
            out[name] = value[..., None, None]
        elif name in ("decode_head.linear_fuse.conv.weight", "decode_head.linear_fuse.weight"):
            out[name] = torch.cat(value.chunk(4, 1)[::-1], 1)
    return out


def split_attention(tensors: Dict) -> Dict:
    """Split MMSegmentation's attention matrix.

    Its 1x1 convolutions in the blocks become linear layers.
    """
    out = {}
    for name, value in tensors.items():
        if ".attn.attn.in_proj_" in name:
            query, key_value = value.split([len(value) // 3, len(value) - len(value) // 3])
            out[name.replace("attn.attn.in_proj_", "attn.q.")] = query
            out[name.replace("attn.attn.in_proj_", "attn.kv.")] = key_value
        elif re.search(r"\.ffn\.layers\.[04]\.weight$", name):
            out[name] = value.flatten(1)
        else:
            out[name] = value
    return out


STAGES = range(4)
FUSE = {"decode_head.linear_fuse.conv": "fuse.0", "decode_head.linear_fuse.bn": "fuse.1"}

NVLABS_ENCODER = {
    **{f"patch_embed{stage + 1}": f"stages.{stage}.embed" for stage in STAGES},
    **{f"block{stage + 1}": f"stages.{stage}.blocks" for stage in STAGES},
    **{f"norm{stage + 1}": f"stages.{stage}.norm" for stage in STAGES},
}

NVLABS_PATTERNS = ((r"\.dwconv\.dwconv\.", ".dwconv."),)

NVLABS_HEAD = {
    **{f"decode_head.linear_c{level + 1}.proj": f"project.{level}" for level in STAGES},
    **FUSE,
    "decode_head.linear_pred": "classifier",
}

MMSEG_PATTERNS = (
    *CONV_MODULE,
    (r"(layers\.\d)\.0\.projection\.", r"\1.0.proj."),
    (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ffn\.layers\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.dwconv."),
    (r"\.ffn\.layers\.4\.", ".mlp.fc2."),
)

MMSEG_ENCODER = {
    f"layers.{stage}.{place}": f"stages.{stage}.{part}"
    for stage in STAGES
    for place, part in enumerate(("embed", "blocks", "norm"))
}

MMSEG_HEAD = {"decode_head.convs": "project", "decode_head.fusion_conv": "fuse", "decode_head.conv_seg": "classifier"}

# Of two names the first is that in files, the second that in memory since version 5.
HF_PATTERNS = (
    (r"^segformer\.encoder\.(\w+)\.(\d)\.", r"segformer.stages.\2.\1."),
    (r"\.patch_embeddings\.layer_norm\.", ".embed.norm."),
    (r"\.patch_embeddings\.", ".embed."),
    (r"\.(block|blocks)\.", ".blocks."),
    (r"\.(layer_norm_1|layernorm_before)\.", ".norm1."),
    (r"\.(layer_norm_2|layernorm_after)\.", ".norm2."),
    (r"\.(attention\.self\.query|attention\.q_proj)\.", ".attn.q."),
    (r"\.(attention\.self|attention\.sequence_reduction)\.layer_norm\.", ".attn.norm."),
    (r"\.(attention\.self\.sr|attention\.sequence_reduction\.sequence_reduction)\.", ".attn.sr."),
    (r"\.(attention\.output\.dense|attention\.o_proj)\.", ".attn.proj."),
    (r"\.mlp\.dense", ".mlp.fc"),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
    (r"^(segformer\.stages\.\d)\.layer_norm\.", r"\1.norm."),
    (r"^decode_head\.linear_(c|projections)\.(\d)\.proj\.", r"decode_head.project.\2."),
)

HF_HEAD = {
    "decode_head.project": "project",
    "decode_head.linear_fuse": "fuse.0",
    "decode_head.batch_norm": "fuse.1",
    "decode_head.classifier": "classifier",
}


def width_of(tensors: Tensors) -> int | None:
    """Return the head's width as an option.

    None where it is the one that the network has by default.
    """
    fuse = next(
        value for name, value in tensors.items() if re.fullmatch(r"decode_head\.\w*fus\w+(\.conv)?\.weight", name)
    )
    third = re.compile(
        r"backbone\.(block3\.2|layers\.2\.1\.2)\.|segformer\.(encoder\.block\.2\.2|stages\.2\.blocks\.2)\."
    )
    default = 768 if any(third.match(name) for name in tensors) else 256
    return None if fuse.shape[0] == default else fuse.shape[0]


LAYOUTS = (
    Layout(
        source="SegFormer (NVlabs/SegFormer)",
        model="segformer",
        backbones=r"mit_b\d",
        marker="decode_head.linear_c1.proj.weight",
        rename={**under("backbone", NVLABS_ENCODER), **NVLABS_HEAD},
        patterns=NVLABS_PATTERNS,
        num_classes="decode_head.linear_pred.weight",
        options={"width": width_of, "project_norm": False, "norm_eps": [1e-5, 1e-6]},
        convert=linear_head,
        unused=("decode_head.conv_seg",),
    ),
    Layout(
        source="SegFormer in MMSegmentation 1.x",
        model="segformer",
        backbones=r"mit_b\d",
        marker=("backbone.layers.0.0.projection.weight", "decode_head.fusion_conv.conv.weight"),
        rename={**under("backbone", MMSEG_ENCODER), **MMSEG_HEAD},
        patterns=MMSEG_PATTERNS,
        num_classes="decode_head.conv_seg.weight",
        options={"width": width_of, "project_norm": True, "norm_eps": [1e-6, 1e-6]},
        convert=split_attention,
    ),
    Layout(
        source="SegFormer in transformers",
        model="segformer",
        backbones=r"mit_b\d",
        marker="decode_head.linear_fuse.weight",
        rename={"segformer": "backbone", **HF_HEAD},
        patterns=HF_PATTERNS,
        num_classes="decode_head.classifier.weight",
        options={"width": width_of, "project_norm": False, "norm_eps": [1e-5, 1e-5]},
        convert=merge_keys_and_values,
    ),
    Layout(
        source="Mix Transformer, ImageNet (NVlabs/SegFormer)",
        model=None,
        backbones=r"mit_b\d",
        marker="patch_embed1.proj.weight",
        rename=NVLABS_ENCODER,
        patterns=NVLABS_PATTERNS,
        unused=("head",),
    ),
    Layout(
        source="Mix Transformer, ImageNet (MMSegmentation)",
        model=None,
        backbones=r"mit_b\d",
        marker="layers.0.0.projection.weight",
        rename=MMSEG_ENCODER,
        patterns=MMSEG_PATTERNS,
        convert=split_attention,
    ),
    Layout(
        source="Mix Transformer, ImageNet (transformers)",
        model=None,
        backbones=r"mit_b\d",
        marker="segformer.encoder.patch_embeddings.0.proj.weight",
        rename={"segformer.stages": "stages"},
        patterns=HF_PATTERNS,
        convert=merge_keys_and_values,
        unused=("classifier",),
    ),
)
