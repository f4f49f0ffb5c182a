"""ImageNet weights by the backbone's name alone, fetched from a stand-in for the publishers' servers."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from model.backbone import BACKBONES, build_backbone
from model.published import imagenet_weights, load_backbone_weights
from model.published.imagenet import SOURCES
from tests.published_keys import assert_equal_states


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, with the headers by which a hub names a file's version."""

    def end_headers(self):
        self.send_header("ETag", '"1"')
        self.send_header("X-Repo-Commit", "0" * 40)
        super().end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path):
    """A folder and the address under which its files are served."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def hub(served, tmp_path, monkeypatch):
    """The folder that stands for the hub of timm's weights."""
    folder, address = served
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return folder


def put(hub: Path, repository: str, weights: dict[str, torch.Tensor]) -> None:
    file = hub / repository / "resolve" / "main" / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file(weights, file)


def test_weights_of_timm_are_fetched_once(hub, monkeypatch):
    theirs = timm.create_model("test_resnet").state_dict()
    put(hub, "timm/test_resnet.r160_in1k", theirs)
    fetched = imagenet_weights("timm/test_resnet")
    assert fetched.source == "timm/test_resnet.r160_in1k"
    assert fetched.preprocessing.mean == (127.5, 127.5, 127.5)
    assert all(torch.equal(fetched.tensors[key], value) for key, value in theirs.items())
    backbone = build_backbone("timm/test_resnet")
    assert load_backbone_weights(backbone, fetched.tensors).missing == ()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(imagenet_weights("timm/test_resnet").tensors["fc.weight"], theirs["fc.weight"])


def test_a_deep_stem_resnet_takes_the_weights_of_timm(hub):
    theirs = timm.create_model("resnet50c").state_dict()
    put(hub, "timm/resnet50c.gluon_in1k", theirs)
    backbone = build_backbone("resnet50_v1c")
    report = load_backbone_weights(backbone, imagenet_weights("resnet50_v1c").tensors)
    assert report.dropped == ("fc.weight", "fc.bias")
    assert torch.equal(backbone.state_dict()["stem.6.weight"], theirs["conv1.6.weight"])


def test_without_a_network_the_message_says_what_to_do(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="timm/test_resnet.*initmodel/.*model.weights=initmodel/FILE") as error:
        imagenet_weights("timm/test_resnet")
    assert "\n" not in str(error.value)


def test_weights_of_torchvision_are_fetched_and_their_hash_is_checked(served, tmp_path, monkeypatch):
    folder, address = served
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), folder / "weights.pth")
    digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()
    (folder / "weights.pth").rename(folder / f"resnet18-{digest[:8]}.pth")
    (folder / "resnet18-f37072fd.pth").write_bytes(b"another file under the published name")
    fetch = torch.hub.load_state_dict_from_url
    for name in (f"resnet18-{digest[:8]}.pth", "resnet18-f37072fd.pth"):
        monkeypatch.setattr(
            torchvision.models._api,
            "load_state_dict_from_url",
            lambda url, name=name, **options: fetch(f"{address}/{name}", str(tmp_path / "cache"), **options),
        )
        if digest[:8] in name:
            backbone, twin = (build_backbone("torchvision/resnet18") for _ in range(2))
            load_backbone_weights(backbone, imagenet_weights("torchvision/resnet18").tensors)
            load_backbone_weights(twin, theirs.state_dict())
            assert_equal_states(backbone, twin)
        else:
            with pytest.raises(OSError, match="invalid hash value"):
                imagenet_weights("torchvision/resnet18")


def test_a_backbone_that_nobody_has_weights_for_is_named():
    with pytest.raises(ValueError, match=r"'dfnet_v1'.*initmodel/README.md"):
        imagenet_weights("dfnet_v1")
    with pytest.raises(ValueError, match="timm has no weights for 'botnet50ts_256'"):
        imagenet_weights("timm/botnet50ts_256")
    with pytest.raises(ValueError, match=r"timm model 'resnet18' has no weights 'bad'; known: a1_in1k"):
        build_backbone("timm/resnet18.bad")


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_exists(name):
    publisher, _, theirs = SOURCES[name].partition("/")
    assert name in BACKBONES
    if publisher == "timm":
        assert timm.get_pretrained_cfg(theirs).has_weights
    elif publisher == "torchvision":
        assert torchvision.models.get_model_weights(theirs).IMAGENET1K_V1.url
