"""Starts an experiment by name on all visible GPUs.

Or on the CPU: what tool/train.sh and tool/test.sh call.

    python -m tool.launch train DATASET EXPERIMENT [section.key=value ...]
    python -m tool.launch test DATASET EXPERIMENT [--checkpoint FILE] [section.key=value ...]

`train` trains (or continues) and then evaluates. Environment:

    NGPU           processes on this machine (default: the visible GPUs, else 1; 0: the CPU)
    NNODES, NODE_RANK, RDZV_ENDPOINT=HOST:PORT    several machines, that of NODE_RANK 0 being HOST
    MAX_RESTARTS   how often processes that died are started again, from the last checkpoint (3)
    DIST_TIMEOUT   seconds that a collective operation may take (600)
    PEER_TIMEOUT   seconds that a process may be silent (60)
    JOIN_TIMEOUT   seconds that a missing machine is waited for (600)
    STOP_TIMEOUT   seconds that processes have to save and end after a signal (300)
    SAVE_TIMEOUT   seconds that a checkpoint may take to be on the disk (1800)
    LOADER_TIMEOUT seconds that the loader workers may take for a batch (600)
"""

import os
import sys
from pathlib import Path

import torch

from tool.shared import cli
from tool.shared.experiment import find_experiment
from tool.shared.plugins import load
from util import UserError, dist
from util.config.load import hand_over
from util.dist import agent
from util.record.machine import cores
from util.record.temporary import temporary_folder


def processes() -> int:
    """Return how many processes this machine runs.

    Raises:
        UserError: NGPU is no number, or more than the GPUs there are.
    """
    text, visible = os.environ.get("NGPU", ""), torch.cuda.device_count()
    if not text:
        return max(visible, 1)
    if not text.isdecimal():
        raise UserError(f"NGPU={text}: expected a number of processes")
    if visible and int(text) > visible:
        raise UserError(f"NGPU={text}, but {visible} GPUs are visible")
    return max(int(text), 1)


def restarts(resume: str) -> int:
    """Return how often the processes may be started again.

    Raises:
        UserError: MAX_RESTARTS is no number, or asks for what train.resume=never forbids.
    """
    text = os.environ.get("MAX_RESTARTS", "")
    if text and not text.isdecimal():
        raise UserError(f"MAX_RESTARTS={text}: expected a number of restarts, 0 for none")
    if resume == "never":
        if int(text or 0):
            raise UserError(f"MAX_RESTARTS={text}: with train.resume=never a restart would begin from the first step")
        return 0
    return int(text) if text else agent.RESTARTS


def start(module: str, arguments: list[str], count: int, again: int, folder: Path) -> int:
    """Run `python -m module arguments` in processes; return the status.

    `count` processes on this machine. Signals that stop this process are passed on; `again`: how often processes that
    died are started again; `folder`: a temporary one.
    """
    if count == 1 and os.environ.get("NNODES", "1") == "1":
        return agent.watch_one([sys.executable, "-m", module, *arguments], again)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    return agent.launch(count, module, arguments, again, folder)


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python -m tool.launch", description=__doc__, example="sh tool/train.sh street fcn18 train.epochs=2"
    )
    parser.add_argument("stage", choices=("train", "test"), help="train and then evaluate, or evaluate alone")
    parser.add_argument("dataset", help="a folder of config/, or a name of config/base/data")
    parser.add_argument(
        "experiment", nargs="?", help="config/DATASET/DATASET_EXPERIMENT.yaml, or a name of config/base/network"
    )
    parser.add_argument("--exp", metavar="DIR", help="folder of the run (default: exp/DATASET/EXPERIMENT)")
    parser.add_argument("--checkpoint", metavar="FILE", help="for test: weights to score (default: the run's own)")
    parser.add_argument("overrides", nargs="*", default=[], metavar="section.key=value", help=cli.OVERRIDES)
    args = parser.parse_intermixed_args(argv)
    dist.end_with_launcher()  # that is a sweep, here
    if args.experiment is None:
        file = args.dataset if args.dataset.endswith((".yaml", ".yml")) else None
        what = f"python -m tool.{args.stage} --config {file}" if file else f"sh tool/{args.stage}.sh street fcn18"
        raise UserError(f"{args.dataset}: two names are needed, of a data set and an experiment; write {what}")
    path = find_experiment(args.dataset, args.experiment)
    experiment = load(path, args.overrides, args.exp)
    chosen = ["--checkpoint", args.checkpoint] if args.checkpoint else []
    if chosen and args.stage == "train":
        parser.error("--checkpoint is for test; a training starts from a file with model.init=FILE")
    if chosen and args.exp:
        chosen += ["--exp", args.exp]
    count = processes()
    again = restarts(experiment.config.train.resume)
    stages = ("tool.train", "tool.test") if args.stage == "train" else ("tool.test",)
    # Every process of every stage reads the same resolved file, so that a mistake is told once, above.
    with temporary_folder("launch") as folder:
        resolved = folder / path.name
        hand_over(experiment, resolved)
        for stage in stages:
            status = start(stage, ["--config", str(resolved), *chosen], count, again, folder)
            if status:
                return status
    return 0


if __name__ == "__main__":
    cli.command(main)
