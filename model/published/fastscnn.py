"""Keys of published Fast-SCNN networks."""

from model.published.layout import CONV_MODULE, Layout

# The published code flattens a separable convolution into one Sequential.
SEPARABLE = {"conv.0": "0.0", "conv.1": "0.1", "conv.3": "1.0", "conv.4": "1.1"}

TRAMAC = {
    "learning_to_downsample.conv.conv": "stem.0",
    **{f"learning_to_downsample.dsconv{i}.{k}": f"stem.{i}.{v}" for i in (1, 2) for k, v in SEPARABLE.items()},
    **{
        f"global_feature_extractor.bottleneck{i + 1}.{j}.block.{k}": f"bottlenecks.{i}.{j}.{v}"
        for i in range(3)
        for j in range(3)
        for k, v in {"0.conv": "0", "1.conv": "1", "2": "2.0", "3": "2.1"}.items()
    },
    **{
        f"global_feature_extractor.ppm.conv{i + 1}.conv.{j}": f"ppm.stages.{i}.{j + 1}"
        for i in range(4)
        for j in (0, 1)
    },
    "global_feature_extractor.ppm.out.conv": "context",
    "feature_fusion.dwconv.conv": "coarse_branch.0",
    "feature_fusion.conv_lower_res": "coarse_branch.1",
    "feature_fusion.conv_higher_res": "fine_branch",
    **{f"classifier.dsconv{i + 1}.{k}": f"head.{i}.{v}" for i in (0, 1) for k, v in SEPARABLE.items()},
    "classifier.conv.1": "classifier",
    "auxlayer": "aux",
}

MMSEG = {
    "backbone.learning_to_downsample.conv": "stem.0",
    **{f"backbone.learning_to_downsample.dsconv{i}": f"stem.{i}" for i in (1, 2)},
    **{
        f"backbone.global_feature_extractor.bottleneck{i + 1}.{j}.conv": f"bottlenecks.{i}.{j}"
        for i in range(3)
        for j in range(3)
    },
    **{f"backbone.global_feature_extractor.ppm.{i}.1.{j}": f"ppm.stages.{i}.{j + 1}" for i in range(4) for j in (0, 1)},
    "backbone.global_feature_extractor.out": "context",
    "backbone.feature_fusion.dwconv": "coarse_branch.0",
    "backbone.feature_fusion.conv_lower_res": "coarse_branch.1",
    "backbone.feature_fusion.conv_higher_res": "fine_branch",
    "decode_head.convs": "head",
    "decode_head.conv_seg": "classifier",
    "auxiliary_head.0.convs.0": "aux_context",
    "auxiliary_head.0.conv_seg": "aux_context.4",
    "auxiliary_head.1.convs.0": "aux",
    "auxiliary_head.1.conv_seg": "aux.4",
}

LAYOUTS = (
    Layout(
        source="Fast-SCNN (Tramac/Fast-SCNN-pytorch)",
        model="fastscnn",
        marker="learning_to_downsample.conv.conv.0.weight",
        rename=TRAMAC,
        num_classes="classifier.conv.1.weight",
        heads={"aux": "auxiliary"},
        options={
            "stem_padding": 0,
            "depthwise_relu": True,
            "context_kernel": 1,
            "fusion_dilation": 1,
            "align_corners": True,
        },
    ),
    Layout(
        source="Fast-SCNN (MMSegmentation)",
        model="fastscnn",
        marker="backbone.learning_to_downsample.dsconv1.depthwise_conv.conv.weight",
        rename=MMSEG,
        patterns=CONV_MODULE,
        num_classes="decode_head.conv_seg.weight",
        heads={"aux": "auxiliary", "aux_context": "auxiliary_context"},
        options={
            "stem_padding": 1,
            "depthwise_relu": False,
            "context_kernel": 3,
            "fusion_dilation": 1,
            "align_corners": False,
        },
        zeros=r"(coarse_branch\.1|fine_branch)\.0\.bias",
    ),
)
