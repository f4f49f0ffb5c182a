"""Writes and runs the files of an exported network.

A file maps `image` to `logits` or `classes`, as its `Form` says. ONNX runs in ONNX Runtime and OpenVINO's files in
OpenVINO, both on the CPU; the files of torch.export and TorchScript run in PyTorch.
"""

import copy
import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.inference.export import missing, onnx_session, openvino_request, with_plain_pooling
from model.inference.fold import fold_norms, input_channels
from model.table import ModelError

Run = Callable[[Tensor], Tensor]
FIRST = 2  # pictures in the example that an exporter sees: of one, some take the number for a constant
# (H, W) of that example, where the file is for any size: sides that nothing divides, and no map of a single pixel,
# which torch.export takes for a constant.
OTHER = (131, 197)
# Of TensorRT, where the file is for any size: the least, the usual and the largest (H, W), and most pictures at once.
TENSORRT_SIZES = ((32, 32), (512, 1024), (2048, 2048))
TENSORRT_BATCH = 8
QUANTISED = ("Conv", "Gemm", "MatMul")  # what int8 computes; the rest stays in float32


@dataclass(frozen=True)
class Form:
    """What an exported file takes and gives.

    Args:
        size: (H, W) of its pictures; None for any.
        mean, std: of the channels on the scale 0..255, of uint8 pictures; None: pictures are float32, normalised.
        classes: whether it gives classes uint8 (N,H,W), not logits float32 (N,num_classes,H,W).
        precision: "float32", "float16" or "int8".
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: bool = False
    precision: str = "float32"

    @property
    def output(self) -> str:
        """Name the output."""
        return "classes" if self.classes else "logits"


class Deployed(nn.Module):
    """A network from what an exported file takes to what it gives.

    Args:
        network: normalised pictures (N,C,H,W) -> {"out": logits (N,num_classes,H,W)}.
    """

    def __init__(self, network: nn.Module, form: Form):
        super().__init__()
        self.network, self.form = network, form
        self.mean: Tensor | None
        self.std: Tensor | None
        self.half_inside = form.precision == "float16"
        mean, std = (None if v is None else torch.tensor(v).view(-1, 1, 1) for v in (form.mean, form.std))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        if self.half_inside:
            network.half()

    def forward(self, image: Tensor) -> Tensor:
        x = image if self.mean is None or self.std is None else (image.float() - self.mean) / self.std
        logits = self.network(x.half() if self.half_inside else x)["out"].float()
        return logits.argmax(1).to(torch.uint8) if self.form.classes else logits


def deployed(network: nn.Module, form: Form) -> tuple[Deployed, Tensor]:
    """Return a copy as an exporter wants it, and an example input.

    Its batch norms are folded, its adaptive pooling is plain.
    """
    size, channels = form.size or OTHER, input_channels(getattr(network, "model", network))
    network = copy.deepcopy(network).eval().cpu()
    fold_norms(network, torch.zeros(1, channels, *size))
    network = with_plain_pooling(network, None if form.size is None else torch.zeros(1, channels, *size))
    example = torch.randn(FIRST, channels, *size, generator=torch.Generator().manual_seed(0))
    if form.mean is not None:
        example = (example * 50 + 120).clamp(0, 255).to(torch.uint8)
    return Deployed(network, form).eval().requires_grad_(False), example


def dynamic_axes(form: Form) -> tuple[int, ...]:
    """Return the axes of the input whose length may change.

    That of the pictures, and where there is no size those of H and W.
    """
    return (0,) if form.size is not None else (0, 2, 3)


def write_onnx(module: Deployed, example: Tensor, file: Path) -> str:
    """Write an ONNX file; return how it was exported.

    PyTorch's current exporter, or where that cannot, the one that traces.

    Raises:
        ModelError: neither can.
    """
    form, axes = module.form, dynamic_axes(module.form)
    names: dict[str, Any] = {"input_names": ["image"], "output_names": [form.output]}
    try:
        shapes = (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)
        program: Any = torch.onnx.export(module, (example,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
        program.save(str(file), external_data=False)
        onnx_session(str(file), quiet=True)
        return "exporter: torch.onnx with torch.export"
    except (RuntimeError, ValueError, TypeError) as error:
        reason = _reason(error)
    moving = dict(zip(axes, ("N", "H", "W"), strict=False))
    over = {"image": moving, form.output: {a - (form.classes and a > 0): name for a, name in moving.items()}}
    try:
        torch.onnx.export(module, (example,), str(file), dynamo=False, opset_version=20, dynamic_axes=over, **names)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(f"cannot be exported to ONNX: {_reason(error)}; with torch.export: {reason}") from None
    return f"exporter: torch.onnx by tracing, since torch.export cannot: {reason}"


def _reason(error: BaseException) -> str:
    """The first telling line of the first error behind an exporter's."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def write_openvino(module: Deployed, example: Tensor, file: Path) -> str:
    """Write OpenVINO's two files, .xml and .bin; return how.

    float16 halves the weights in the file; OpenVINO computes in what suits the processor.
    """
    import openvino

    shape = [-1 if axis in dynamic_axes(module.form) else side for axis, side in enumerate(example.shape)]
    with torch.no_grad():
        converted = openvino.convert_model(module, example_input=example, input=[tuple(shape)])
    converted.inputs[0].get_tensor().set_names({"image"})
    converted.outputs[0].get_tensor().set_names({module.form.output})
    openvino.save_model(converted, file, compress_to_fp16=module.form.precision == "float16")
    return "exporter: openvino.convert_model by tracing"


def write_torch_export(module: Deployed, example: Tensor, file: Path) -> str:
    """Write a program of torch.export; return how.

    Raises:
        ModelError: it cannot be exported.
    """
    shapes = (dict.fromkeys(dynamic_axes(module.form), torch.export.Dim.DYNAMIC),)
    try:
        torch.export.save(torch.export.export(module, (example,), dynamic_shapes=shapes), file)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(f"cannot be exported by torch.export: {_reason(error)}") from None
    return "exporter: torch.export"


def write_torchscript(module: Deployed, example: Tensor, file: Path) -> str:
    """Write a traced TorchScript; return how."""
    with torch.no_grad():
        torch.jit.trace(module, (example,)).save(str(file))
    return "exporter: torch.jit.trace"


def write_tensorrt(module: Deployed, example: Tensor, file: Path) -> str:
    """Write an engine of TensorRT, by way of ONNX; return how.

    It is for the GPU of this machine.

    Raises:
        ModelError: there is no GPU, or TensorRT refuses the network.
    """
    if not torch.cuda.is_available():
        raise ModelError("tensorrt: an engine is built on the GPU that runs it, and there is none")
    import tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    with tempfile.TemporaryDirectory() as folder:
        how = write_onnx(module, example, Path(folder, "net.onnx"))
        if not parser.parse_from_file(str(Path(folder, "net.onnx"))):
            raise ModelError(f"tensorrt: {parser.get_error(0)}")
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    channels, sides = example.shape[1], module.form.size
    least, usual, most = ((sides,) * 3) if sides else TENSORRT_SIZES
    profile.set_shape("image", (1, channels, *least), (1, channels, *usual), (TENSORRT_BATCH, channels, *most))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ModelError("tensorrt: no engine could be built; its own lines above say why")
    file.write_bytes(plan)
    return f"{how}; tensorrt {tensorrt.__version__}"


def quantise(source: Path, file: Path, pictures: Iterable[np.ndarray]) -> None:
    """Write the ONNX file `source` with convolutions and products in int8.

    Static quantisation of ONNX Runtime: weights by output channel, activations by their range over the pictures.

    Args:
        pictures: inputs of the file, (N,C,H,W) in its type.
    """
    from onnxruntime import quantization

    class Pictures(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter(pictures)

        def get_next(self):
            return next(({"image": picture} for picture in self.left), None)

    quantization.quantize_static(
        source,
        file,
        Pictures(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=[*QUANTISED],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def openvino_of_onnx(source: Path, file: Path) -> None:
    """Write OpenVINO's files of a quantised ONNX file."""
    import openvino

    openvino.save_model(openvino.convert_model(source), file, compress_to_fp16=False)


def run_onnx(file: Path) -> Run:
    """Return what runs an ONNX file, in ONNX Runtime."""
    session = onnx_session(str(file), quiet=True)
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def run_openvino(file: Path) -> Run:
    """Return what runs OpenVINO's files, in float32 where they say nothing else."""
    request = openvino_request(file)
    return lambda image: torch.from_numpy(request.infer({0: image.numpy()})[0].copy())


def run_torch_export(file: Path) -> Run:
    """Return what runs a program of torch.export.

    Its guards are left out. Some compare sizes that happen to agree in the example's picture, and refuse other pictures
    whose logits are right.
    """
    program = torch.export.load(file).module(check_guards=False)
    return lambda image: program(image)  # no part of the network that runs it: its `eval` raises


def run_torchscript(file: Path) -> Run:
    """Return what runs a TorchScript."""
    return torch.jit.load(str(file), map_location="cpu")


def run_tensorrt(file: Path) -> Run:
    """Return what runs an engine of TensorRT, on the GPU."""
    if not torch.cuda.is_available():
        raise ModelError(f"{file}: TensorRT runs on a GPU, and there is none")
    import tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    engine = tensorrt.Runtime(logger).deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        raise ModelError(f"{file}: damaged, or built for another GPU or version of TensorRT")
    context, form = engine.create_execution_context(), read_facts(file)[0]

    def run(image: Tensor) -> Tensor:
        image = image.cuda().contiguous()
        if not context.set_input_shape("image", tuple(image.shape)):
            raise ModelError(f"{file}: is not for pictures of the shape {tuple(image.shape)}")
        kind = torch.uint8 if form.classes else torch.float32
        found = torch.empty(tuple(context.get_tensor_shape(form.output)), dtype=kind, device="cuda")
        context.set_tensor_address("image", image.data_ptr())
        context.set_tensor_address(form.output, found.data_ptr())
        stream = torch.cuda.current_stream()
        if not context.execute_async_v3(stream.cuda_stream):
            raise ModelError(f"{file}: TensorRT could not run it; its own lines above say why")
        stream.synchronize()
        return found.cpu()

    return run


@dataclass(frozen=True)
class Format:
    """Kind of file.

    suffix: end of its name. packages: what writes and runs it. engine: package that runs it.
    """

    suffix: str
    packages: tuple[str, ...]
    engine: str
    write: Callable[[Deployed, Tensor, Path], str]
    run: Callable[[Path], Run]


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), "onnxruntime", write_onnx, run_onnx),
    "openvino": Format(".xml", ("openvino",), "openvino", write_openvino, run_openvino),
    "torch-export": Format(".pt2", (), "torch", write_torch_export, run_torch_export),
    "torchscript": Format(".torchscript", (), "torch", write_torchscript, run_torchscript),
    "tensorrt": Format(".engine", ("tensorrt", "onnx", "onnxscript"), "tensorrt", write_tensorrt, run_tensorrt),
}


def format_of(file: str | Path) -> str | None:
    """Name the format of a file by its suffix; None for others."""
    return next((name for name, kind in FORMATS.items() if Path(file).suffix == kind.suffix), None)


def write(network: nn.Module, form: Form, kind: str, file: Path, pictures: Sequence[np.ndarray] = ()) -> str:
    """Write a network in a format; return how it was exported.

    Args:
        network: normalised pictures (N,C,H,W) -> {"out": logits}; it is copied.
        kind: a key of `FORMATS`.
        pictures: of int8 the inputs (N,C,H,W) that the ranges are taken from.

    Raises:
        ModelError: a package is missing, or the network cannot be exported so.
    """
    needed = FORMATS["onnx"].packages + FORMATS[kind].packages if form.precision == "int8" else FORMATS[kind].packages
    if lack := missing(*needed):
        raise ModelError(f"{kind}: {lack}")
    module, example = deployed(network, form)
    if form.precision != "int8":
        return FORMATS[kind].write(module, example, file)
    if kind not in ("onnx", "openvino"):
        raise ModelError(f"{kind}: int8 is for onnx and openvino")
    with tempfile.TemporaryDirectory() as folder:
        plain, quantised = Path(folder, "plain.onnx"), Path(folder, "int8.onnx")
        how = write_onnx(module, example, plain)
        quantise(plain, file if kind == "onnx" else quantised, pictures)
        if kind == "openvino":
            openvino_of_onnx(quantised, file)
    return f"{how}; int8 by onnxruntime.quantization, ranges of {len(pictures)} pictures"


def write_facts(kind: str, file: Path, form: Form, facts: dict[str, Any]) -> None:
    """Write the form of a file, and the facts of its network.

    Into the ONNX file itself, an entry of JSON for each fact; beside the others as FILE.json.
    """
    entries = {"form": asdict(form), **facts}
    if kind != "onnx":
        sidecar(file).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
        return
    import onnx

    program = onnx.load(file)
    del program.metadata_props[:]
    for name, value in entries.items():
        program.metadata_props.add(key=name, value=json.dumps(value))
    onnx.save(program, file)


def sidecar(file: Path) -> Path:
    """Return the file beside an exported one that holds its facts."""
    return file.with_name(file.name + ".json")


def read_facts(file: str | Path) -> tuple[Form, dict[str, Any]]:
    """Return the form of a file, and the facts of its network.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: a package is missing, or nobody wrote these facts.
    """
    file = Path(file)
    kind = format_of(file)
    assert kind is not None
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    if lack := missing(*FORMATS[kind].packages):
        raise ModelError(f"{file}: {lack}")
    try:
        if kind == "onnx":
            entries = _onnx_facts(file)
        else:
            entries = json.loads(sidecar(file).read_text(encoding="utf-8")) if sidecar(file).is_file() else {}
        said: dict[str, Any] = entries.pop("form")
        said = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
        form = Form(**said)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        where = "" if kind == "onnx" else f" ({sidecar(file).name} beside it)"
        raise ModelError(f"{file}: holds no facts of its network{where}; write it with tool.export") from error
    if form.size is not None and not (len(form.size) == 2 and all(isinstance(v, int) and v > 0 for v in form.size)):
        raise ModelError(f"{file}: is for pictures of a size that is none, {form.size!r:.80}")
    return form, entries


def _onnx_facts(file: Path) -> dict[str, Any]:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        props = onnx.load(file, load_external_data=False).metadata_props
    except DecodeError as error:
        raise ModelError(f"{file}: damaged, or no ONNX file ({error})") from None
    return {prop.key: json.loads(prop.value) for prop in props}


class ExportedFile(nn.Module):
    """An exported file as a network, which its engine runs.

    Normalised pictures (N,C,H,W) -> {"out": logits (N,num_classes,H,W)}, float32, where the pictures are. Of a file for
    uint8 pictures the normalisation is undone, and rounded; of one that gives classes the logits are 1 and 0.

    Args:
        file: of `FORMATS`, with facts.
        spec: name, num_classes, backbone and options of its network.
    """

    def __init__(self, file: str | Path, form: Form, spec: dict[str, Any]):
        super().__init__()
        self.file, self.form, self.spec = Path(file), form, spec
        kind = format_of(file)
        assert kind is not None
        self.kind = kind
        if lack := missing(*FORMATS[kind].packages):
            raise ModelError(f"{file}: {lack}")
        try:
            self.run = FORMATS[kind].run(self.file)
        except RuntimeError as error:
            raise ModelError(f"{file}: damaged, or of another format ({str(error).splitlines()[0]})") from None

    @property
    def gives_classes(self) -> bool:
        """Tell whether the file gives classes, which cannot be averaged."""
        return self.form.classes

    @torch.no_grad()
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map normalised pictures (N,C,H,W) to logits.

        Raises:
            ModelError: the pictures are of another size than the file is for.
        """
        size, form = tuple(x.shape[-2:]), self.form
        if form.size is not None and size != form.size:
            height, width = form.size
            windows = "" if form.classes else f"; tool.test scores it in windows, test.window=[{height},{width}]"
            raise ModelError(
                f"{self.file} is for pictures of {height}x{width} (height x width), not {size[0]}x{size[1]}; export it "
                f"with --size {size[0]} {size[1]}, or with --dynamic{windows}"
            )
        found = self.run(self.image_of(x))
        if form.classes:
            found = nn.functional.one_hot(found.long(), self.spec["num_classes"]).permute(0, 3, 1, 2).float()
        return {"out": found.to(x.device)}

    def image_of(self, x: Tensor) -> Tensor:
        """Return normalised pictures as the file wants them."""
        x = x.cpu().float()
        if self.form.mean is not None and self.form.std is not None:
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.form.mean, self.form.std))
            x = (x * std + mean).round().clamp(0, 255).to(torch.uint8)
        return x.contiguous()

    def describe(self) -> dict[str, object]:
        """Return what runs the file, for metrics.json."""
        engine = FORMATS[self.kind].engine
        return {"name": engine, "version": importlib.metadata.version(engine), "file": self.file.name} | asdict(
            self.form
        )
