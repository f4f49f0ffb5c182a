"""Finds where a number that is not finite came up.

The steps before the loss that was not finite are run again.

    python -m tool.replay exp/street/sfnet_mobile/replay/step_00000123.json [section.key=value ...]

The run left that file. The steps begin with the checkpoint beside it, or with the initial weights, and every number is
looked at on the way. Nothing of the run's folder is changed but replay.log.
"""

import math
from pathlib import Path

import torch

from tool.shared import cli, plugins
from tool.shared.data import batches_on_device, build_batches, build_data, data_of, with_class_weights
from tool.shared.network import build_training, make_deterministic
from util import UserError, dist
from util.config.load import RunPaths, saved_config
from util.record.log import log, open_log
from util.train.loop import Training, optimizer_step, to_device
from util.train.prefetch import Prefetch
from util.train.replay import FirstNotFinite, Record, any_process, bad_parameters, read_record, span
from util.train.resume import restore


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python -m tool.replay",
        description=__doc__,
        example="python -m tool.replay exp/street/fcn18/replay/step_00000123.json",
    )
    parser.add_argument("record", metavar="FILE", help="what a run left that stopped at a loss that is not finite")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes that are tried out")
    plugins.add_argument(parser)
    args = parser.parse_intermixed_args(argv)
    open_log(None)
    plugins.use(args.plugin)
    return replay(args.record, args.overrides)


def replay(file: str, overrides: list[str]) -> int:
    """Return 0 if every loss was finite this time.

    On a CPU that means that something was changed since.

    Raises:
        FloatingPointError: it happened again; says at which step, in which part of the network, from which pictures.
        UserError: FILE is no such record, or the data are not those of the run.
    """
    record, path = read_record(file), Path(file)
    always = ["train.compile=false", "train.resume=force"]  # hooks see no compiled layer; a change may be tried out
    plugins.refuse_unnamed_code(record.config, file)
    config = saved_config(record.config, file, [*always, *overrides])
    run = RunPaths(path.parent.parent, path.parent)
    device = dist.init(cli.lost)
    open_log(run.folder / "replay.log")
    if dist.world_size() != len(record.ranks):
        log.info(
            "the run had %d processes, this is %d: sums are rounded otherwise", len(record.ranks), dist.world_size()
        )
    train_set, val_set = build_data(config, run)
    config = with_class_weights(config, train_set, run)
    make_deterministic(config)
    training = build_training(config, train_set, device)
    if record.checkpoint:
        restore(training, path.parent / record.checkpoint, data_of(train_set, val_set))
    log.info("replaying steps %d to %d of %s", training.step, record.step, run.folder)
    run_steps(training, batches_on_device(training, build_batches(training, train_set, run)), record)
    log.info("not reproduced: every loss up to step %d is finite", record.step)
    return 0


def run_steps(training: Training, batches: Prefetch, record: Record) -> None:
    """Look at every number of every step up to the record's."""
    training.net.train()
    while training.step <= record.step:
        batch = next(batches)
        if training.step == record.step:
            check_samples(batch, record)
        with FirstNotFinite(training.model) as watch:
            terms = optimizer_step(training, [to_device(micro_batch, training) for micro_batch in batch])
        values = {name: float(value) for name, value in terms.items()}
        text = " ".join(f"{name} {value:.6g}" for name, value in values.items())
        if any(dist.gather_objects(not all(map(math.isfinite, values.values())))):
            raise FloatingPointError(f"reproduced: step {training.step}, {text}\n{explain(watch, batch)}")
        log.info("step %d %s", training.step, text)
        spoiled = bad_parameters(training.model)
        if spoiled:
            log.info(
                "after step %d %d weights are not finite, first %s: its gradient was not, or too large a step",
                training.step,
                len(spoiled),
                spoiled[0],
            )
        training.step += 1


def check_samples(batch: list[dict], record: Record) -> None:
    """Refuse data that are no longer those of the run.

    Raises:
        UserError: names the samples then and now.
    """
    if dist.world_size() != len(record.ranks):
        return
    names, before = (
        [name for micro_batch in batch for name in micro_batch["name"]],
        record.ranks[dist.rank()].get("samples"),
    )
    if names != before:
        raise UserError(f"step {record.step} had the samples {before}, and now {names}: the list file was changed")


def explain(watch: FirstNotFinite, batch: list[dict]) -> str:
    """Say where the first not finite number came up, and from what."""
    found = any_process(watch.found)
    where = [f"first in {text}" for text in found] or ["every layer's output is finite: it came up in the loss itself"]
    names = [name for micro_batch in batch for name in micro_batch["name"]]
    guilty = [names[i] for i in watch.pictures if i < len(names)]
    pictures = any_process(", ".join(guilty)) if len(guilty) < len(names) else []
    return "\n".join([*where, *(f"pictures {text}" for text in pictures), *any_process("\n".join(samples(batch)))])


def samples(batch: list[dict]) -> list[str]:
    """Return a line an image: its values, its label's classes."""
    lines = []
    for micro_batch in batch:
        for name, image, label in zip(*(micro_batch[key] for key in ("name", "image", "label")), strict=True):
            classes = torch.unique(label).tolist()
            lines.append(f"{name}: values {span(image)}, classes {classes}")
    return lines


if __name__ == "__main__":
    cli.command(main)
