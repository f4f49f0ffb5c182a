"""Records a loss that is not finite, for replay.

The loss is read at log lines only, when the weights have moved on. So the record names the checkpoint before: order,
augmentation and random streams follow from it, and the steps from there to the failure are the same ones again.
"""

import json
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from util import UserError, dist
from util.checkpoint.store import CheckpointWriter
from util.config.schema import Config
from util.record.files import read_text
from util.record.log import write_json
from util.train.losslog import NotFinite

LARGEST = 2**24  # bytes of a record that are read


class Record(BaseModel):
    """A failed step.

    step: the first whose loss was not finite. ranks: each process's loss terms (as text: nan, inf) and samples.
    checkpoint: the file beside the record from which the steps begin; None: they begin with the initial weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    config: dict
    checkpoint: str | None
    ranks: list[dict]


def leave_record(error: NotFinite, folder: Path, config: Config, checkpoints: CheckpointWriter) -> Path:
    """Write replay/step_N.json, keep the checkpoint before; return the path."""
    file = folder / "replay" / f"step_{error.step:08}.json"
    file.parent.mkdir(exist_ok=True)
    beside = file.with_suffix(".pth")
    kept = checkpoints.keep(beside)
    ranks = [each | {"terms": {name: str(value) for name, value in each["terms"].items()}} for each in error.ranks]
    record = Record(
        step=error.step, config=config.model_dump(mode="json"), checkpoint=beside.name if kept else None, ranks=ranks
    )
    write_json(file, record.model_dump())
    return file


def read_record(file: str | Path) -> Record:
    """Read a record of `leave_record`.

    Raises:
        FileNotFoundError, UserError: there is no such file, or it is no record.
    """
    try:
        return Record.model_validate(json.loads(read_text(file, LARGEST)), strict=True)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{file}: no record of a failed step: {where or 'content'}: {first['msg'].lower()}") from None


class FirstNotFinite:
    """Finds the first module whose output is not finite, while entered.

    found: a sentence, or None.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        self.found: str | None = None
        self.pictures: list[int] = []  # of the batch, whose values are not finite there
        self._hooks: list = []

    def __enter__(self) -> "FirstNotFinite":
        for name, module in self.network.named_modules():
            if not any(module.children()):
                self._hooks.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str):
        def look(module, inputs, output):
            if self.found is not None or not isinstance(output, torch.Tensor) or finite(output):
                return
            given = [value for value in inputs if isinstance(value, torch.Tensor)]
            self.found = (
                f"{name} ({type(module).__name__}): its input lies within {', '.join(map(span, given))}, "
                f"its output within {span(output)}"
            )
            flat = output.detach().flatten(1) if output.ndim > 1 else output.detach()[:, None]
            self.pictures = torch.nonzero(~flat.isfinite().all(1)).flatten().tolist()

        return look


def finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.detach().isfinite().all())


def span(tensor: torch.Tensor) -> str:
    """Smallest and largest finite value, and how many are not finite."""
    values = tensor.detach().float()
    good = values[values.isfinite()]
    missing = values.numel() - good.numel()
    text = f"{float(good.min()):.3g}..{float(good.max()):.3g}" if good.numel() else "no finite value"
    return f"{text}, {missing} of {values.numel()} not finite" if missing else text


def bad_parameters(network: nn.Module) -> list[str]:
    """Name the parameters and buffers that are not finite."""
    named = [*network.named_parameters(), *network.named_buffers()]
    return [name for name, value in named if not finite(value)]


def any_process(text: str | None) -> list[str]:
    """Gather what the processes have to say, each with its rank."""
    return [f"rank {rank}: {each}" for rank, each in enumerate(dist.gather_objects(text)) if each]
