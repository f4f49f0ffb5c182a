"""`train`: the training step against the obvious loop.

On the same network, loss and pictures.
"""

import argparse
import multiprocessing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from tool.bench.experiment import (
    check_size,
    class_count,
    common_arguments,
    experiment_of,
    full_float32,
    in_precision,
    rounds_argument,
    size_argument,
)
from tool.bench.plain.train import PlainLoop
from tool.bench.report import Report, Table
from tool.bench.timing import alternate, summarise
from tool.shared.network import build_training, network_of
from util import UserError
from util.config.schema import Config
from util.record.memory import keep_memory
from util.train import loop

PLAIN = "plain loop, float32 NCHW"
PLAIN_TF32 = "plain loop, TF32 in convolutions"  # what PyTorch does on a GPU if nothing is said
# Each adds to the one before; what a contender does not say is off.
OURS = {
    "ours, float32 NCHW": {"amp": "off", "channels_last": False},
    "+ fused optimiser": {"amp": "off", "channels_last": False, "fused": True},
    "+ channels_last": {"amp": "off", "channels_last": True, "fused": True},
    "+ bf16": {"amp": "bf16", "channels_last": True, "fused": True},
    "+ checkpointing": {"amp": "bf16", "channels_last": True, "fused": True, "checkpointing": True},
    "bf16 + compile": {"amp": "bf16", "channels_last": True, "fused": True, "compile": True},
}
CLOCK = {"wall": "wall clock", "cpu": "processor seconds of all threads", "cuda": "wall clock, GPU synchronised"}
METHOD = (
    "seconds of whole steps, {clock}; {threads}; the contenders take turns in one process; the plain loop is the "
    "first row. Peak memory is what a process of its own adds while it builds the contender and runs two steps. "
    "{memory}"
)
ON_A_GPU = (
    "cuDNN tries out its kernels, on both sides alike. Before each timed run of 3 steps the memory of the other "
    "contenders is given back and one step is run. Float32 is computed in full, not in TF32, but where a row says so"
)
GPU_STEPS = 3
INCLUDED = (
    "uint8 batch to the device, normalisation, forward pass, loss, backward pass, optimiser, schedule; not reading "
    "pictures, averaged weights, or logging. Pictures and labels are drawn at random"
)


@dataclass(frozen=True)
class Task:
    """What is trained: experiment, classes, batch, size."""

    config: Config
    classes: int
    batch: int
    size: tuple[int, int]
    device: str
    threads: int


@dataclass(frozen=True)
class FakeSet:
    """As much of a data set as `build_training` asks for."""

    classes: tuple[str, ...]
    length: int

    def __len__(self) -> int:
        return self.length


def add(commands) -> None:
    text = "a training step against the obvious loop: pictures per second and memory"
    parser = common_arguments(commands, "train", run, text)
    size_argument(parser, "augment.crop")
    rounds_argument(parser, 7)
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="pictures of a step (default 4)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads on a CPU (default: PyTorch's)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="on a CPU (default wall)")
    parser.add_argument("--compile", action="store_true", help="on a CPU: torch.compile too, which takes minutes")


def run(args: argparse.Namespace) -> int:
    """Measure and print; return the exit status."""
    if args.batch < 2:
        raise UserError(f"--batch {args.batch}: batch norm behind global pooling needs 2 pictures")
    args.overrides += [
        "model.weights=none",
        "model.init=null",
        "train.ema=null",
        f"train.batch_size={args.batch}",
        "train.accumulate=1",
    ]
    config = experiment_of(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kept = device == "cpu" and keep_memory()
    set_kernels()
    size = check_size(tuple(args.size or config.augment.crop))
    task = Task(config, class_count(config), args.batch, size, device, torch.get_num_threads())
    clock = "cuda" if device == "cuda" else args.clock
    table = measure(task, contenders_of(device, args.compile), args.rounds, clock)
    report(args, task, clock, kept, table).show(args.json)
    return 0


def contenders_of(device: str, compiled: bool) -> list[str]:
    """Name the contenders; a CPU knows no TF32 and compiles on demand."""
    if device == "cuda":
        return [PLAIN, PLAIN_TF32, *OURS]
    return [PLAIN, *(name for name in OURS if compiled or "compile" not in name)]


def set_kernels() -> None:
    """Set what holds for all contenders on a GPU."""
    torch.backends.cudnn.benchmark = True
    full_float32(True)


def alternated(clock: str, steps: Mapping[str, Callable[[], object]], rounds: int, warmup: int) -> dict:
    """Return the seconds of a step of each contender.

    On a GPU of one out of `GPU_STEPS` together, see `ON_A_GPU`.
    """
    if clock != "cuda":
        return alternate(steps, rounds, warmup, clock)

    def several(step: Callable) -> Callable:
        return lambda: [step() for _ in range(GPU_STEPS)]

    def settle(run: Callable) -> None:
        torch.cuda.empty_cache()
        run()

    spent = alternate({name: several(step) for name, step in steps.items()}, rounds, warmup, clock, settle)
    return {name: [value / GPU_STEPS for value in values] for name, values in spent.items()}


def report(args, task: Task, clock: str, kept: bool, table: Table) -> Report:
    """Return the report, which says how it was measured."""
    memory = f"Freed memory is {'kept for the next tensor' if kept else 'handled as usual'}, on both sides alike"
    memory = ON_A_GPU if task.device == "cuda" else memory
    threads = f"{task.threads} thread{'s' if task.threads > 1 else ''}" if task.device == "cpu" else "one GPU"
    return Report(
        "train",
        f"{args.dataset} {args.experiment}, {task.batch} pictures of {task.size[0]} x {task.size[1]}",
        METHOD.format(clock=CLOCK[clock], threads=threads, memory=memory),
        INCLUDED,
        "float32, or bf16 autocast with float32 weights, loss and optimiser, as each row says",
        [table],
    )


def measure(task: Task, names: list[str], rounds: int, clock: str) -> Table:
    """Measure a step of each contender, with its memory."""
    seconds = alternated(clock, {name: build(task, name) for name in names}, rounds, 2)
    rows = summarise(seconds, task.batch)
    facts = {row.name: {} if clock == "cpu" else {"pictures/s": round(1 / row.median, 2)} for row in rows}
    for name in names:
        facts[name]["peak MiB"] = round(peak_of(task, name))
    return Table("training step", rows, "ms a picture", 1000.0, facts)


def build(task: Task, name: str) -> Callable[[], object]:
    """Build a contender: a function that runs one step."""
    if name in (PLAIN, PLAIN_TF32):
        return in_precision(name == PLAIN, partial(build_plain(task).step, *draw_batch(task)))
    return build_ours(task, OURS[name])[1]


def draw_batch(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw an image and a label with ignored rows.

    image: uint8 (n, 3, h, w), channels last as the loader gives it. label: uint8 (n, h, w).
    """
    generator = torch.Generator().manual_seed(0)
    n, (height, width) = task.batch, task.size
    image = torch.randint(0, 256, (n, height, width, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)
    cells = torch.randint(0, task.classes, (n, -(-height // 16), -(-width // 16)), generator=generator)
    label = cells.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :height, :width].to(torch.uint8).contiguous()
    label[:, : height // 20] = 255
    return image, label


def build_plain(task: Task) -> PlainLoop:
    """Build the plain loop on a network like ours.

    Raises:
        UserError: the experiment has a loss that the plain loop has not.
    """
    loss, optim, data = task.config.loss, task.config.optim, task.config.data
    if loss.name not in ("cross_entropy", "ohem") or loss.extra or loss.label_smoothing:
        raise UserError("loss: the plain loop has cross_entropy and ohem, without smoothing or further losses")
    torch.manual_seed(task.config.seed)
    network = network_of(task.config, task.classes)
    hard = None
    if loss.name == "ohem":
        hard = loss.options.get("threshold", 0.7), loss.options.get("min_kept", 10_000)
    weights = None if loss.class_weights is None else torch.tensor(loss.class_weights)
    make = {"sgd": partial(torch.optim.SGD, momentum=optim.momentum), "adamw": torch.optim.AdamW}[optim.name]
    make = partial(make, lr=optim.lr, weight_decay=optim.weight_decay)
    return PlainLoop(network, loss.weights, weights, hard, make, data.mean, data.std, task.device)


def build_ours(task: Task, options: dict) -> tuple[loop.Training, Callable[[], object]]:
    """Build a training like `tool.train`'s; return it and its step."""
    options = dict(options)
    fused = options.pop("fused", False)
    train = task.config.train.model_copy(update=options)
    config = task.config.model_copy(update={"train": train})
    names = tuple(str(index) for index in range(task.classes))
    device = torch.device(task.device, torch.cuda.current_device() if task.device == "cuda" else None)
    training = build_training(config, FakeSet(names, 1000 * task.batch), device)
    for group in training.optimizer.param_groups:
        group["fused"] = fused or None  # None: as PyTorch chooses, which is one kernel for several tensors on a GPU
    training.net.train()
    image, label = draw_batch(task)
    if task.device == "cuda":
        image, label = image.pin_memory(), label.pin_memory()

    def step():
        return loop.optimizer_step(training, [loop.to_device({"image": image, "label": label}, training)])

    return training, step


def peak_of(task: Task, name: str) -> float:
    """Return the peak MiB of building a contender and two steps."""
    if task.device == "cuda":
        torch.cuda.empty_cache()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_here, (task, name))


def _peak_here(task: Task, name: str) -> float:
    torch.set_num_threads(task.threads)
    set_kernels()
    if task.device == "cpu":
        keep_memory()
    before = _memory("VmRSS") if task.device == "cpu" else 0.0
    step = build(task, name)
    step()
    step()
    if task.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return _memory("VmHWM") - before


def _memory(entry: str) -> float:
    """MiB of an entry of Linux's /proc/self/status; `resource` would count the parent's peak as well."""
    with open("/proc/self/status", encoding="ascii") as file:
        found = [line.split() for line in file if line.startswith(entry)]
    return int(found[0][1]) / 1024
