"""Every published list of keys is recognised, and loads strictly, without memory for the weights."""

import pytest

from model import build_model
from model.backbone import build_backbone
from model.layer.shapes import shapes_only
from model.published import load_published, recognise_family
from tests.published_keys import key_list, meta

# List of keys -> network and backbone that they are of.
LISTS = {
    "bisenet_resnet18": ("bisenet", "torchvision/resnet18"),
    "cgnet": ("cgnet", None),
    "coincheung_bisenetv1": ("bisenet", "torchvision/resnet18"),
    "coincheung_bisenetv2": ("bisenetv2", None),
    "danet_resnet50": ("danet", "resnet50_v1s"),
    "ddrnet_23": ("ddrnet", None),
    "ddrnet_23_slim": ("ddrnet", None),
    "deeplabv3_plus_xception": ("deeplabv3plus", "xception65"),
    "deeplabv3_resnet50": ("deeplabv3", "resnet50_v1s"),
    "denseaspp_densenet121": ("denseaspp", "densenet121"),
    "dfanet": ("dfanet", None),
    "dunet_resnet50": ("dunet", "resnet50_v1s"),
    "encnet_resnet50": ("encnet", "resnet50_v1s"),
    "encnet_resnet50_codes": ("encnet", "resnet50_v1s"),
    "enet": ("enet", None),
    "espnet": ("espnetv2", None),
    "fast_scnn": ("fastscnn", None),
    "fast_scnn_aux": ("fastscnn", None),
    "fcn16s_vgg16": ("fcn16s", "vgg16"),
    "fcn32s_vgg16": ("fcn32s", "vgg16"),
    "fcn8s_vgg16": ("fcn8s", "vgg16"),
    "fcn_resnet50": ("fcn", "resnet50_v1s"),
    "hf_segformer_b0": ("segformer", "mit_b0"),
    "hf_segformer_b0_hub": ("segformer", "mit_b0"),
    "hf_upernet_convnext": ("upernet", "convnext_tiny"),
    "hf_upernet_swin": ("upernet", "swin_tiny"),
    "hrnet_ocr_w48": ("hrnet_ocr", "hrnet_w48"),
    "hrnet_w18_small_v2": ("hrnet", "hrnet_w18_small_v2"),
    "hrnet_w48": ("hrnet", "hrnet_w48"),
    "icnet_resnet50": ("icnet", "resnet50_v1s"),
    "lednet": ("lednet", None),
    "mmseg_ann_r50-d8": ("ann", "resnet50_v1c"),
    "mmseg_bisenetv1_r18": ("bisenet", "torchvision/resnet18"),
    "mmseg_bisenetv2": ("bisenetv2", None),
    "mmseg_danet_r50-d8": ("danet", "resnet50_v1c"),
    "mmseg_ddrnet_23-slim": ("ddrnet", None),
    "mmseg_deeplabv3_r50-d8": ("deeplabv3", "resnet50_v1c"),
    "mmseg_deeplabv3plus_r50-d8": ("deeplabv3plus", "resnet50_v1c"),
    "mmseg_encnet_r50-d8": ("encnet", "resnet50_v1c"),
    "mmseg_fastscnn": ("fastscnn", None),
    "mmseg_fcn_r50-d8": ("fcn", "resnet50_v1c"),
    "mmseg_icnet_r50": ("icnet_ppm", "resnet50_v1c"),
    "mmseg_pidnet-s": ("pidnet", None),
    "mmseg_pspnet_r50-d8": ("pspnet", "resnet50_v1c"),
    "mmseg_pspnet_r50-d8_769": ("pspnet", "resnet50_v1c"),
    "mmseg_segformer_mit-b0": ("segformer", "mit_b0"),
    "mmseg_sfnet_r101": ("semanticflow", "resnet101"),
    "mmseg_sfnet_r18": ("semanticflow", "resnet18"),
    "mmseg_sfnet_r18_dsn": ("semanticflow", "resnet18"),
    "mmseg_sfnet_r50": ("semanticflow", "resnet50"),
    "mmseg_stdc1": ("stdc", "stdc1"),
    "mmseg_upernet_r50": ("upernet", "resnet50_v1c"),
    "nvlabs_segformer_b0": ("segformer", "mit_b0"),
    "nvlabs_segformer_b2": ("segformer", "mit_b2"),
    "ocnet_asp_resnet50": ("ocnet", "resnet50_v1s"),
    "ocnet_base_resnet50": ("ocnet", "resnet50_v1s"),
    "ocnet_pyramid_resnet50": ("ocnet", "resnet50_v1s"),
    "pidnet_l": ("pidnet", None),
    "pidnet_m": ("pidnet", None),
    "pidnet_s": ("pidnet", None),
    "psanet_resnet50": ("psanet", "resnet50_v1s"),
    "pspnet101": ("pspnet", "resnet101"),
    "pspnet50": ("pspnet", "resnet50"),
    "pspnet_resnet50": ("pspnet", "resnet50_v1s"),
    "pspnet_resnet50_jpu": ("pspnet", "resnet50_v1s"),
    "semseg_resnet50_backbone": (None, "resnet50"),
    "sfnet_dfnetv1": ("semanticflow", "dfnet_v1"),
    "sfnet_dfnetv2": ("semanticflow", "dfnet_v2"),
    "sfnet_lite_r18": ("semanticflow_lite", "resnet18"),
    "sfnet_lite_stdc1": ("semanticflow_lite", "stdc1"),
    "sfnet_lite_stdc2": ("semanticflow_lite", "stdc2"),
    "sfnet_r101": ("semanticflow", "resnet101"),
    "sfnet_r18": ("semanticflow", "resnet18"),
    "sfnet_r18_dsn": ("semanticflow", "resnet18"),
    "sfnet_r50": ("semanticflow", "resnet50"),
    "sketchfill_mobilenet": ("sketchfill", "mobilenet_v2"),
    "sketchfill_resnet101": ("sketchfill", "resnet101"),
    "sketchfill_resnet50": ("sketchfill", "resnet50"),
    "sketchfill_resnet50_nof1": ("sketchfill", "resnet50"),
    "sketchfill_resnet50_os8": ("sketchfill", "resnet50"),
    "stdc1_seg": ("stdc", "stdc1"),
    "stdc1_seg_negative": ("stdc", "stdc1"),
    "stdc2_seg": ("stdc", "stdc2"),
    "torchvision_deeplabv3_mobilenet_v3_large": ("deeplabv3", "mobilenet_v3_large"),
    "torchvision_deeplabv3_resnet50": ("deeplabv3", "torchvision/resnet50"),
    "torchvision_fcn_resnet50": ("fcn", "torchvision/resnet50"),
    "torchvision_lraspp_mobilenet_v3_large": ("lraspp", "mobilenet_v3_large"),
}


@pytest.mark.parametrize("file", LISTS)
def test_published_keys_are_recognised_and_load_strictly(file):
    golden = key_list(file)
    checkpoint = meta(golden)
    found = recognise_family({"state_dict": {f"module.{key}": value for key, value in checkpoint.items()}})
    assert (found.model, found.backbone) == LISTS[file]
    with shapes_only():
        if found.model is None:
            network = build_backbone(found.backbone)
        else:
            network = build_model(found.model, found.num_classes, found.backbone, **found.options)
    report = load_published(network, checkpoint)
    # Norms that are no batch norms there, and files of before PyTorch 0.4.1, do not count their batches.
    assert all(name.endswith(".num_batches_tracked") for name in report.missing)
    assert {*report.mapped.values(), *report.zeroed, *report.missing} == set(network.state_dict())


@pytest.mark.parametrize("file", ["hf_eomt_tiny", "hf_eomt_tiny_masked"])
def test_networks_that_there_are_none_of_are_refused(file):
    with pytest.raises(ValueError, match=r"no published family known here: it has attn_mask_probs"):
        recognise_family(meta(key_list(file)))
