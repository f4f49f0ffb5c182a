"""One process of `bench train --grow`'s scaling: trains with the others and prints the seconds a picture.

    python -m tool.bench.train_worker STEPS YAML BATCH H W [section.key=value ...]

The environment is that of torchrun.
"""

import json
import sys

import torch

from tool.bench.experiment import class_count
from tool.bench.train import BEST, OURS, Task, build_ours, set_kernels
from tool.bench.train_grow import time_steps
from tool.shared.experiment import load_experiment
from util import dist
from util.record.log import open_log


def main(argv: list[str]) -> int:
    steps, path, batch, height, width, *overrides = argv
    device = dist.init()
    open_log(None)
    torch.set_num_threads(1)
    set_kernels()
    world = dist.world_size()
    overrides += [f"train.batch_size={int(batch) * world}"]
    config, _ = load_experiment(path, overrides)
    task = Task(config, class_count(config), int(batch), (int(height), int(width)), device.type, 1)
    step = build_ours(task, OURS[BEST])[1]

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        dist.barrier()

    print(json.dumps(time_steps(step, int(steps), wait) / (int(batch) * world)), flush=True)
    dist.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
