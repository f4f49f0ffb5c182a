"""`infer`: one network in every way to run it.

Against PyTorch's plain one.
"""

import argparse
import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from model.inference.export import missing, onnx_engine, openvino_engine
from model.inference.fold import fold_norms
from model.inference.optimize import optimize_for_inference
from tool.bench.experiment import (
    check_size,
    class_count,
    common_arguments,
    experiment_of,
    in_precision,
    rounds_argument,
    size_argument,
)
from tool.bench.report import Report, Table
from tool.bench.timing import alternate, summarise
from tool.shared.network import network_of, rebuild
from tool.shared.published import read_ours
from tool.shared.trained import Told, compare_network
from util import UserError
from util.config.schema import Config
from util.record.memory import keep_memory

Contender = Callable[[Tensor], Tensor]
REFERENCE = "eager float32"
GROWTH = ((0.5, 1), (1, 1), (1, 2), (1, 4))  # factors of the picture's sides, pictures in a batch
LAST = torch.channels_last


def add(commands) -> None:
    parser = common_arguments(commands, "infer", run, "one forward pass, plain and in every faster way")
    size_argument(parser, "augment.crop")
    rounds_argument(parser, 7)
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="pictures in a forward pass (default 1)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: PyTorch's)")
    parser.add_argument("--checkpoint", metavar="FILE", help="trained weights (default: random ones)")
    parser.add_argument("--engines", metavar="NAME,...", help="only contenders with one of these words in their name")
    parser.add_argument("--grow", action="store_true", help="also other sizes and batches, for the fastest in PyTorch")


def run(args: argparse.Namespace) -> int:
    """Measure all contenders in turn; return the exit status.

    Their outputs are compared with the reference's.
    """
    config = experiment_of(args)
    size = check_size(tuple(args.size or config.augment.crop))
    if args.batch < 1 or (args.threads or 1) < 1:
        raise UserError("--batch and --threads are numbers of at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    network = trained_network(args.checkpoint, config) if args.checkpoint else network_of(config, class_count(config))
    network = network.eval().to(device)
    x = torch.randn(args.batch, 3, *size, device=device)
    notes = [
        f"weights of {Path(args.checkpoint).name}"
        if args.checkpoint
        else "weights are random, which makes the network more sensitive to rounding than trained ones do"
    ]
    build = on_gpu if device.type == "cuda" else on_cpu
    contenders = build(network, size, args.batch, _chosen(args.engines), notes)
    tables = measured(contenders, x, args.rounds)
    if args.grow:
        tables += growth(network, size, args.rounds, device)
    precision = "as each row says; softmax is not part, logits are float32"
    Report(
        "infer",
        f"{args.dataset} {args.experiment}",
        _method(device, args),
        "the forward pass, pictures to logits of "
        f"their size, {args.batch} x {size[0]} x {size[1]}; the picture is normalised and on the device already",
        precision,
        tables,
        notes=tuple(notes),
    ).show(args.json)
    return 0


def trained_network(file: str, config: Config) -> nn.Module:
    """Return the trained network of a checkpoint, ours or published.

    Raises:
        FileNotFoundError, UserError: the file is missing, damaged, exported, or of another network or class count.
    """
    state = read_ours(file, config.model.name, config.model.options)
    if "export" in state:
        raise UserError(f"{file} is exported; name the checkpoint that it was made of")
    compare_network(state["spec"], config, Told(file, {}))
    number = state["spec"]["num_classes"]
    if number != class_count(config):
        raise UserError(f"{file}: trained for {number} classes, the experiment has {class_count(config)}")
    return rebuild(state, file)


def _method(device: torch.device, args: argparse.Namespace) -> str:
    clock = "clock time, the GPU waited for" if device.type == "cuda" else "processor time of the process"
    return (
        f"{clock}, {torch.get_num_threads()} CPU threads, {args.rounds} rounds after a warm-up, all contenders in "
        "one process, in turn"
    )


def _chosen(words: str | None) -> Callable[[str], bool]:
    wanted = [word.strip().lower() for word in words.split(",")] if words else [""]
    return lambda name: name == REFERENCE or any(word in name.lower() for word in wanted)


def plain(network: nn.Module, amp: torch.dtype | None = None, layout: torch.memory_format | None = None) -> Contender:
    """Run the network as it is, autocast or not.

    Its weights and pictures have that memory layout.
    """
    network = network if layout is None else copy.deepcopy(network).to(memory_format=layout)

    def forward(x: Tensor) -> Tensor:
        x = x if layout is None else x.contiguous(memory_format=layout)
        with torch.no_grad(), nullcontext() if amp is None else torch.autocast(x.device.type, amp):
            return network(x)["out"]

    return forward


def folded(network: nn.Module) -> nn.Module:
    """Return a copy without norms after convolutions."""
    network = copy.deepcopy(network)
    fold_norms(network)
    return network


def optimised(network: nn.Module, amp: torch.dtype | None, compile: bool) -> Contender:
    network = optimize_for_inference(network, amp, compile)
    return lambda x: network(x)["out"]


def on_cpu(
    network: nn.Module, size: tuple[int, int], batch: int, chosen: Callable[[str], bool], notes: list[str]
) -> dict[str, Contender]:
    """Build the contenders of a CPU.

    What is not installed goes to `notes`.
    """
    bf16, fast = torch.bfloat16, optimize_for_inference(network)
    notes.append(f"optimised in float32: {fast.summary}")
    ways = {
        REFERENCE: partial(plain, network),
        "channels_last": partial(plain, network, None, LAST),
        "folded": lambda: plain(folded(network)),
        "optimised (test.optimize=fold)": lambda: lambda x: fast(x)["out"],
        "compiled (test.optimize=compile)": partial(optimised, network, None, True),
        "bf16 autocast": partial(plain, network, bf16),
        "bf16 optimised": partial(optimised, network, bf16, False),
        "bf16 compiled": partial(optimised, network, bf16, True),
        "ONNX Runtime float32": lambda: onnx_engine(folded(network), size, batch),
        "OpenVINO float32": lambda: openvino_engine(folded(network), size, batch),
        "OpenVINO bf16": lambda: openvino_engine(folded(network), size, batch, bf16=True),
    }
    found = {}
    for name, way in ways.items():
        packages = {"ONNX": ("onnx", "onnxruntime"), "OpenVINO": ("openvino",)}.get(name.partition(" ")[0], ())
        if lack := missing(*packages):
            notes.append(f"{name}: {lack}")
        elif chosen(name):
            found[name] = way()
    return found


def on_gpu(
    network: nn.Module, size: tuple[int, int], batch: int, chosen: Callable[[str], bool], notes: list[str]
) -> dict[str, Contender]:
    """Build the contenders of a GPU.

    Compiled ones start their kernels as one CUDA graph.
    """
    bf16, fp16 = torch.bfloat16, torch.float16
    ways = {
        REFERENCE: partial(plain, network),
        "TF32": partial(plain, network),
        "float32 optimised": partial(optimised, network, None, False),
        "TF32 compiled": partial(optimised, network, None, True),
        "bf16 autocast": partial(plain, network, bf16),
        "bf16 optimised": partial(optimised, network, bf16, False),
        "bf16 compiled": partial(optimised, network, bf16, True),
        "fp16 optimised": partial(optimised, network, fp16, False),
        "fp16 compiled": partial(optimised, network, fp16, True),
    }
    # Every one sets it: what the one before it left would be part of what a compiled one is guarded by.
    return {name: in_precision("TF32" not in name, way()) for name, way in ways.items() if chosen(name)}


def measured(contenders: Mapping[str, Contender], x: Tensor, rounds: int) -> list[Table]:
    """Measure speed and agreement.

    On a CPU once as the C library comes, and once with freed memory kept.
    """
    clock = "cuda" if x.is_cuda else "cpu"
    facts = {name: compared(forward, contenders[REFERENCE], x) for name, forward in contenders.items()}
    calls = {name: partial(forward, x) for name, forward in contenders.items()}
    first = summarise(alternate(calls, rounds, clock=clock), len(x))
    tables = [Table("One forward pass", first, "ms a picture", 1000, facts)]
    if not x.is_cuda and keep_memory():
        rows = summarise(alternate(calls, rounds, warmup=2, clock=clock), len(x))
        base = first[0].median
        ratios = {row.name: {"to eager above": f"{base / row.median:.2f}"} for row in rows}
        title = "The same, freed memory kept (test.keep_memory, without its huge pages)"
        tables.append(Table(title, rows, "ms a picture", 1000, ratios))
    return tables


def compared(forward: Contender, reference: Contender, x: Tensor) -> dict[str, object]:
    """Compare a contender with the reference.

    Share of equal classes, largest difference of logits over the largest logit, memory.
    """
    found, peak = peak_of(lambda: forward(x).clone())
    expected = reference(x)
    return {
        "equal classes": f"{(found.argmax(1) == expected.argmax(1)).double().mean().item():.3%}",
        "difference": f"{((found - expected).abs().max() / expected.abs().max()).item():.1e}",
        "peak MiB": peak,
    }


def peak_of(function: Callable[[], Tensor]) -> tuple[Tensor, str]:
    """Return a call's result and peak MiB.

    "" where that is not told. Two calls go before it: the first compiles, and on a GPU the second records what the
    third repeats.
    """
    function()
    function()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return function(), f"{(torch.cuda.max_memory_allocated() - before) / 2**20:.0f}"
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return function(), ""
    reset.write_text("5")  # the peak starts anew from what is resident now
    before = _resident("VmHWM")
    result = function()
    return result, f"{_resident('VmHWM') - before:.0f}"


def _resident(line: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) for text in lines if text.startswith(line)) / 1024


def growth(network: nn.Module, size: tuple[int, int], rounds: int, device: torch.device) -> list[Table]:
    """Measure the reference and folded networks as they grow.

    One table a size and batch, without compilation.
    """
    tables = []
    amp = torch.bfloat16
    contenders = {
        REFERENCE: plain(network),
        "optimised": optimised(network, None, False),
        "bf16 optimised": optimised(network, amp, False),
    }
    for factor, batch in GROWTH:
        x = torch.randn(batch, 3, *(max(round(side * factor), 1) for side in size), device=device)
        calls = {name: partial(forward, x) for name, forward in contenders.items()}
        rows = summarise(alternate(calls, rounds, clock="cuda" if x.is_cuda else "cpu"), batch)
        tables.append(Table(f"{batch} x {x.shape[2]} x {x.shape[3]}", rows, "ms a picture", 1000))
    return tables
