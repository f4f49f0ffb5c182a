"""Starts an experiment by name on all visible GPUs, or the CPU: what tool/train.sh and tool/test.sh call.

    python -m tool.launch train DATASET EXPERIMENT [section.key=value ...]
    python -m tool.launch test DATASET EXPERIMENT [section.key=value ...]

`train` trains (or continues) and then evaluates. Environment: NGPU, the number of processes (default: the visible
GPUs, else 1; 0: the CPU); NNODES, NODE_RANK and RDZV_ENDPOINT=HOST:PORT for several machines.
"""

import argparse
import difflib
import os
import subprocess
import sys
from pathlib import Path

import torch

from tool import common
from util import dist


def find_experiment(dataset: str, experiment: str, root: Path = Path("config")) -> Path:
    """The YAML file of an experiment.

    Raises:
        ValueError: there is none; lists those that exist.
    """
    path = root / dataset / f"{dataset}_{experiment}.yaml"
    if path.is_file():
        return path
    folders = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    if dataset not in folders:
        near = difflib.get_close_matches(dataset, folders, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"no experiments for data set '{dataset}'{hint} There are: {', '.join(folders) or 'none'}")
    names = sorted(p.stem.removeprefix(f"{dataset}_") for p in (root / dataset).glob("*.yaml"))
    near = difflib.get_close_matches(experiment, names, 1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"no experiment '{experiment}' for {dataset}{hint} There are: {', '.join(names)}")


def processes() -> int:
    """How many processes this machine runs.

    Raises:
        ValueError: NGPU is no number, or more than the GPUs there are.
    """
    text, visible = os.environ.get("NGPU", ""), torch.cuda.device_count()
    if not text:
        return max(visible, 1)
    if not text.isdecimal():
        raise ValueError(f"NGPU={text}: expected a number of processes")
    if visible and int(text) > visible:
        raise ValueError(f"NGPU={text}, but {visible} GPUs are visible")
    return max(int(text), 1)


def start(module: str, arguments: list[str], count: int) -> int:
    """Runs `python -m module arguments` in `count` processes on this machine; the exit status."""
    if count == 1 and int(os.environ.get("NNODES", 1)) == 1:
        return subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
    return dist.launch(count, module, arguments)


def main(argv: list[str] | None = None) -> int:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("stage", choices=("train", "test"))
    args.add_argument("dataset")
    args.add_argument("experiment")
    args.add_argument("--exp", metavar="DIR", help="folder of the run (default: exp/DATASET/EXPERIMENT)")
    args.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = args.parse_intermixed_args(argv)
    path = find_experiment(args.dataset, args.experiment)
    common.load_experiment(str(path), args.overrides, args.exp)  # a mistake is told once, not by every process
    count = processes()
    arguments = ["--config", str(path), *(["--exp", args.exp] if args.exp else []), *args.overrides]
    stages = ("tool.train", "tool.test") if args.stage == "train" else ("tool.test",)
    for stage in stages:
        status = start(stage, arguments, count)
        if status:
            return status if status > 0 else 128 - status
    return 0


if __name__ == "__main__":
    common.command(main)
