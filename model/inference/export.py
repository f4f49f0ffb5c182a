"""Engines that run an exported network.

ONNX Runtime and OpenVINO (`pip install -e .[export]`). Every engine here is made for one picture size and batch, and is
a function from normalised pictures (N,3,H,W) to logits (N,num_classes,H,W), float32, on the CPU.
"""

import copy
import importlib.metadata
import importlib.util
import io
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.inference.fold import fold_norms, input_channels
from model.table import ModelError

Engine = Callable[[Tensor], Tensor]
ENGINES = {"onnxruntime": ("onnx", "onnxruntime"), "openvino": ("openvino",)}  # and the packages that each needs
MOST_SIZES = 16  # engines that one network keeps, each with its weights
OPSET = 20  # the first in which GridSample and Resize say all that these networks need


def missing(*packages: str) -> str | None:
    """Return what to install if one of the packages is missing."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    extra = "pip install tensorrt" if "tensorrt" in absent else "pip install -e .[export]"
    return f"not installed: {', '.join(absent)} ({extra})" if absent else None


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

    def __init__(self, size: tuple[int, int], cells: int | tuple[int | None, int | None] | None):
        super().__init__()
        pair = cells if isinstance(cells, tuple) else (cells, cells)
        rows, columns = (side if own is None else own for own, side in zip(pair, size, strict=True))
        self.rows: Tensor
        self.columns: Tensor
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


class _AnyPool(nn.Module):
    """Adaptive average pooling of maps of any size, as two products with matrices made from the map's size.

    No exporter has adaptive pooling of maps whose size it does not know.
    """

    def __init__(self, cells: int | tuple[int | None, int | None] | None):
        super().__init__()
        self.cells = cells if isinstance(cells, tuple) else (cells, cells)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.cells
        if rows is not None:
            x = _means_for(x.shape[-2], rows, x) @ x
        return x if columns is None else x @ _means_for(x.shape[-1], columns, x).transpose(0, 1)


def _means_for(length: int, cells: int, x: Tensor) -> Tensor:
    """(cells, length): as `_means`, by operations that an exporter sees, in the type of x."""
    cell, place = torch.arange(cells, device=x.device)[:, None], torch.arange(length, device=x.device)[None]
    start, end = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
    return ((place >= start) & (place < end)).to(x.dtype) / (end - start).to(x.dtype)


def with_plain_pooling(network: nn.Module, x: Tensor | None) -> nn.Module:
    """Return a copy whose adaptive pooling every exporter has.

    It is in eval mode, on the CPU.

    Args:
        x: pictures (N,3,H,W) of the one size that it will see; None for any size.
    """
    network = copy.deepcopy(network).eval().cpu().to(memory_format=torch.contiguous_format)
    pools = {name: m for name, m in network.named_modules() if isinstance(m, nn.AdaptiveAvgPool2d)}
    if x is None:
        for name, pool in pools.items():
            if pool.output_size not in (1, (1, 1)):  # the mean of the map, which exporters have
                network.set_submodule(name, _AnyPool(pool.output_size))
        return network
    sizes: dict[str, tuple[int, int]] = {}

    def note(_, args: tuple, name: str) -> None:
        sizes[name] = tuple(args[0].shape[-2:])

    hooks = [m.register_forward_pre_hook(partial(note, name=name)) for name, m in pools.items()]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    for name, size in sizes.items():
        network.set_submodule(name, _FixedPool(size, pools[name].output_size))
    return network


def to_onnx(network: nn.Module, size: tuple[int, int], batch: int = 1) -> bytes:
    """Return an ONNX model of a network at one size.

    Of pictures "image" (batch,3,*size) to "logits" (batch,num_classes,*size). network: in float32, its norms folded
    (`model.optimize_for_inference`) if it shall be fast.
    """
    x = torch.zeros(batch, input_channels(network), *size)
    file = io.BytesIO()
    # The exporter that traces: the newer one needs a package more, and names what it cannot do by its operators too.
    torch.onnx.export(
        _Logits(with_plain_pooling(network, x)),
        (x,),
        file,  # type: ignore[arg-type]  # the exporter that traces writes to streams too
        dynamo=False,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
    )
    return file.getvalue()


def onnx_session(model: bytes | str, quiet: bool = False):
    """Open an ONNX model, or its file, in ONNX Runtime.

    On the CPU, with PyTorch's number of threads. quiet: it tells of errors alone.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if quiet:
        options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])


def openvino_request(model: object, bf16: bool = False):
    """Compile a model of OpenVINO, or its file; return what runs it.

    On the CPU, with PyTorch's number of threads. bf16: bfloat16 where the processor computes in it, as OpenVINO decides
    for each layer.
    """
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
    }
    return openvino.Core().compile_model(model, "CPU", settings).create_infer_request()


def onnx_engine(network: nn.Module, size: tuple[int, int], batch: int = 1) -> Engine:
    """Build the engine of ONNX Runtime."""
    session = onnx_session(to_onnx(network, size, batch))
    return lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0])


def openvino_engine(network: nn.Module, size: tuple[int, int], batch: int = 1, bf16: bool = False) -> Engine:
    """Build the engine of OpenVINO; bf16: see `openvino_request`.

    The result is overwritten by the next call.
    """
    import openvino

    x = torch.zeros(batch, input_channels(network), *size)
    with torch.no_grad():
        converted = openvino.convert_model(
            _Logits(with_plain_pooling(network, x)), example_input=x, input=[tuple(x.shape)]
        )
    request = openvino_request(converted, bf16)
    return lambda x: torch.from_numpy(request.infer({0: x.numpy()}, share_inputs=True, share_outputs=True)[0])


class ExportedNetwork(nn.Module):
    """A network that an engine runs on the CPU.

    Pictures (N,3,H,W) -> {"out": logits (N,num_classes,H,W)}. An engine is made when a picture size first comes, for as
    many pictures as come with it; a smaller batch later, as the last windows of a picture are, is padded.

    Args:
        model: any network of `build_model`; a copy of it, its norms folded, is exported.
        engine: one of `ENGINES`.
        amp: None for float32, or torch.bfloat16 with openvino.

    Raises:
        ModelError: the engine's packages are not installed, or it does not compute in that precision.
    """

    def __init__(self, model: nn.Module, engine: str, amp: torch.dtype | None = None):
        super().__init__()
        if lack := missing(*ENGINES[engine]):
            raise ModelError(f"test.engine={engine}: {lack}")
        if amp is not None and (engine, amp) != ("openvino", torch.bfloat16):
            raise ModelError(f"test.engine={engine} does not compute in {amp}; use float32, or bfloat16 with openvino")
        self.model = copy.deepcopy(model).eval().cpu()
        self.name, self.amp, self.folded = engine, amp, False
        self.engines: dict[tuple[int, int], tuple[int, Engine]] = {}  # by size (H, W): pictures in a batch, engine
        self.build_seconds = self.forward_seconds = 0.0
        self.forward_passes = 0

    @torch.no_grad()
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map normalised pictures (N,3,H,W) to logits, float32, where x is."""
        height, width = x.shape[-2:]
        batch, engine = self.engines.get((height, width), (0, None))
        if engine is None or batch < len(x):
            batch, engine = len(x), self._built((height, width), len(x))
            self.engines[height, width] = batch, engine
        begin = time.perf_counter()
        logits = engine(F.pad(x.cpu(), (0, 0, 0, 0, 0, 0, 0, batch - len(x))).contiguous())
        self.forward_seconds += time.perf_counter() - begin
        self.forward_passes += 1
        return {"out": logits[: len(x)].clone().to(x.device)}  # the next pass overwrites what OpenVINO gives

    def describe(self) -> dict[str, object]:
        """Return what ran, for metrics.json.

        Engine, its version, its sizes as [pictures, H, W], and seconds.
        """
        return {
            "name": self.name,
            "version": importlib.metadata.version(self.name),
            "batches": [[batch, *size] for size, (batch, _) in self.engines.items()],
            "build_seconds": round(self.build_seconds, 3),
            "seconds_per_forward": round(self.forward_seconds / max(self.forward_passes, 1), 6),
        }

    def _built(self, size: tuple[int, int], batch: int) -> Engine:
        if size not in self.engines and len(self.engines) == MOST_SIZES:
            raise ModelError(
                f"test.engine={self.name}: the pictures have more than {MOST_SIZES} sizes, and an engine is made for "
                "each; give them one with test.window=[H, W], or use test.engine=torch"
            )
        begin = time.perf_counter()
        with torch.autocast("cpu", enabled=False):  # the precision is the engine's, no part of what is exported
            if not self.folded:
                fold_norms(self.model, torch.zeros(1, input_channels(self.model), *size))
                self.folded = True
            if self.name == "openvino":
                engine = openvino_engine(self.model, size, batch, bf16=self.amp is not None)
            else:
                engine = onnx_engine(self.model, size, batch)
        self.build_seconds += time.perf_counter() - begin
        return engine
