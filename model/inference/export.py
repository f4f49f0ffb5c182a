"""Engines that run an exported network: PyTorch's own packages, ONNX Runtime, OpenVINO (`pip install -e .[export]`).

Every engine here is made for one picture size and batch, and is a function from normalised pictures (N,3,H,W) to logits
(N,num_classes,H,W), float32, on the CPU.
"""

import copy
import importlib.util
import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch._inductor
from torch import Tensor, nn

Engine = Callable[[Tensor], Tensor]
OPSET = 20  # the first in which GridSample and Resize say all that these networks need


def missing(*packages: str) -> str | None:
    """What to tell the user if one of the packages is not installed."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)} (pip install -e .[export])" if absent else None


class _Logits(nn.Module):
    """A network without its dict: (N,3,H,W) -> (N,num_classes,H,W)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)["out"]


class _FixedPool(nn.Module):
    """Adaptive average pooling of maps of one size, as two products with constant matrices.

    The ONNX exporter has no adaptive pooling to cells that do not divide the map.
    """

    def __init__(self, size: tuple[int, int], cells: int | tuple[int, int]):
        super().__init__()
        rows, columns = (cells, cells) if isinstance(cells, int) else cells
        self.register_buffer("rows", _means(size[0], rows))
        self.register_buffer("columns", _means(size[1], columns).T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ x @ self.columns


def _means(length: int, cells: int) -> Tensor:
    """(cells, length): the mean over the positions of each cell, whose borders are PyTorch's."""
    matrix = torch.zeros(cells, length)
    for cell in range(cells):
        start, end = cell * length // cells, -(-(cell + 1) * length // cells)
        matrix[cell, start:end] = 1 / (end - start)
    return matrix


def _exportable(network: nn.Module, x: Tensor) -> nn.Module:
    """A copy that gives the logits alone, in eval mode, its adaptive pooling fixed to the size of x (N,3,H,W)."""
    network = copy.deepcopy(network).eval().cpu().to(memory_format=torch.contiguous_format)
    sizes: dict[str, tuple[int, int]] = {}

    def note(_, args: tuple, name: str) -> None:
        sizes[name] = tuple(args[0].shape[-2:])

    pools = {name: m for name, m in network.named_modules() if isinstance(m, nn.AdaptiveAvgPool2d)}
    hooks = [m.register_forward_pre_hook(partial(note, name=name)) for name, m in pools.items()]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    for name, size in sizes.items():
        network.set_submodule(name, _FixedPool(size, pools[name].output_size))
    return _Logits(network)


def package_engine(network: nn.Module, size: tuple[int, int], batch: int = 1) -> Engine:
    """A package of torch.export, compiled ahead of time by AOTInductor: neither Python's code nor its weights are used.

    network: of `model.optimize_for_inference`, not compiled, if it shall be fast; then a process that loads the package
    must import `model`, whose operators it calls.
    """
    x = torch.zeros(batch, 3, *size)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        program = torch.export.export(_Logits(network), (x,))
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(Path(folder, "network.pt2")), inductor_configs={"freezing": True}
        )
        package = torch._inductor.aoti_load_package(path)
    return lambda x: package(x)


def to_onnx(network: nn.Module, size: tuple[int, int], batch: int = 1) -> bytes:
    """An ONNX model of pictures "image" (batch,3,*size) to "logits" (batch,num_classes,*size).

    network: in float32, its norms folded (`model.optimize_for_inference`) if it shall be fast.
    """
    x = torch.zeros(batch, 3, *size)
    file = io.BytesIO()
    # The exporter that traces: the newer one needs a package more, and names what it cannot do by its operators too.
    torch.onnx.export(
        _exportable(network, x),
        (x,),
        file,
        dynamo=False,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
    )
    return file.getvalue()


def onnx_engine(network: nn.Module, size: tuple[int, int], batch: int = 1) -> Engine:
    """ONNX Runtime, with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(to_onnx(network, size, batch), options, ["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0])


def openvino_engine(network: nn.Module, size: tuple[int, int], batch: int = 1, bf16: bool = False) -> Engine:
    """OpenVINO, with as many threads as PyTorch has; the result is overwritten by the next call.

    bf16: bfloat16 where the processor computes in it, as OpenVINO decides for each layer.
    """
    import openvino

    x = torch.zeros(batch, 3, *size)
    with torch.no_grad():
        converted = openvino.convert_model(_exportable(network, x), example_input=x, input=[tuple(x.shape)])
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
    }
    request = openvino.Core().compile_model(converted, "CPU", settings).create_infer_request()
    return lambda x: torch.from_numpy(request.infer({0: x.numpy()}, share_inputs=True, share_outputs=True)[0])
