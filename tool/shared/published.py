"""Published checkpoints as this project's own: network, preprocessing, class names and colours."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from dataset import DATASETS, dataset_class
from dataset.base import distinct_palette
from model import build_model
from model.inference.formats import format_of, read_facts
from model.published import LoadReport, Recognised, layout_of, load_published, recognise_family
from util import UserError, checkpoint
from util.checkpoint.facts import Facts
from util.record.files import sha256
from util.record.log import log

VOID = ("void", "unlabelled", "unlabeled", "ignore", "ignored")  # names of an output for what no label says
BLACK = (0, 0, 0)
TRACELESS = ("output_stride", "align_corners", "flow_align_corners")  # options that no weight tells


@dataclass(frozen=True)
class Translated:
    """A published checkpoint under our names.

    known: the reason for its class names; empty where the user has named them.
    """

    found: Recognised
    model: nn.Module
    report: LoadReport
    facts: Facts
    known: str
    origin: dict[str, object]

    def entries(self) -> dict[str, object]:
        """Give the entries of a checkpoint of ours."""
        entries = {"model": self.model.state_dict(), "spec": self.model.spec, "provenance": self.origin}
        return entries | self.facts.entries()

    @property
    def untold(self) -> dict[str, object]:
        """Give the options that leave no trace in the weights."""
        layout, options = layout_of(self.found.family), self.model.spec["options"]
        names = {*TRACELESS, *layout.implied} - {*layout.options}
        return {name: value for name, value in options.items() if name in names}


def translate(
    state: Mapping[str, object],
    source: str | Path,
    options: Mapping[str, object],
    classes: str | Sequence[str] | None = None,
) -> Translated:
    """Give what a published checkpoint holds, its network filled.

    Args:
        state: what `util.checkpoint.load` has read from `source`.
        options: of the network, over those that the weights tell.
        classes: a data set of `DATASETS` or the class names; None for the data set that the family was trained on.

    Raises:
        UserError: naming `source`: it is of no known family, has a backbone alone, or does not fit.
    """
    try:
        found = recognise_family(state)
        if found.model is None:
            raise UserError(
                f"holds a backbone alone ({found.family}); name it as model.weights of an experiment whose "
                f"model.backbone is {found.backbone}"
            )
        model = build_model(found.model, found.num_classes, found.backbone, **(found.options | dict(options)))
        report = load_published(model, state)
        facts, known = facts_of_family(found, classes)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    origin = {"file": Path(source).name, "sha256": sha256(source), "family": found.family, **_training_facts(state)}
    return Translated(found, model, report, facts, known, origin)


def facts_of_family(found: Recognised, classes: str | Sequence[str] | None = None) -> tuple[Facts, str]:
    """Give the facts of a published checkpoint, and their reason.

    Raises:
        UserError: the classes are of another number, or nobody says which they are.
    """
    layout, number = layout_of(found.family), found.num_classes
    known = ""
    if classes is None:
        classes = layout.datasets.get(number)
        if classes is None:
            raise UserError(
                f"its {number} classes are those of no data set that {found.family} was trained on; name the data set "
                "with --classes, or the classes themselves: --classes road,car,sky"
            )
        family = "the family has no other of that number"
        known = family if layout.for_classes else f"assumed from their number, {number}; --classes NAME says otherwise"
    if isinstance(classes, str):
        dataset, kind = classes, dataset_class(classes)
        names, colors = list(kind.classes), [tuple(int(value) for value in color) for color in kind.colors]
        if len(names) == number - 1:
            names, colors = [*names, VOID[0]], [*colors, BLACK]
    else:
        dataset, names = "custom", [str(name) for name in classes]
        colors = [tuple(int(value) for value in color) for color in distinct_palette(len(names))]
    if len(names) != number:
        counts = {other: len(dataset_class(other).classes) for other in DATASETS if other != "custom"}
        fitting = ", ".join(other for other, count in counts.items() if count in (number, number - 1)) or "none"
        raise UserError(
            f"the network has {number} outputs, {dataset} {len(names)} classes; data sets of {number}, or of "
            f"{number - 1} and void: {fitting}"
        )
    seen = preprocessing_of(found)
    return replace(seen, dataset=dataset, classes=tuple(names), colors=tuple(colors)), known


def preprocessing_of(found: Recognised) -> Facts:
    """Give what the family makes of an image, and nothing else."""
    wanted = layout_of(found.family).preprocessing
    return Facts(mean=tuple(wanted.mean), std=tuple(wanted.std), channel_order=wanted.channel_order)


def _training_facts(state: Mapping[str, object]) -> dict[str, float | int]:
    """Score and epoch, where the published file says them."""
    meta = state.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    facts = {"mean_iu": (state.get("mean_iu"), float), "epoch": (state.get("epoch", meta.get("epoch")), int)}
    return {
        name: kind(value)
        for name, (value, kind) in facts.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def is_void(classes: Sequence[str]) -> bool:
    """Tell whether the last class stands for what is ignored."""
    return len(classes) > 1 and classes[-1].lower() in VOID


def without_void(facts: Facts, outputs: int) -> range | None:
    """Give the outputs that are predicted, as `test.void: ignore` does.

    None for all `outputs` of the network: the last one does not stand for what is ignored.
    """
    return range(outputs - 1) if facts.classes and is_void(facts.classes) else None


def read_ours(
    file: str | Path, network: str = "", options: Mapping[str, object] | None = None, classes: Sequence[str] = ()
) -> dict:
    """Read a checkpoint of ours, or a published one under our names.

    An exported file too: what it knows, without weights.

    Args:
        network: what a published checkpoint is expected to hold; `options` are of it, over those that its weights tell.
        classes: names of a published network's classes, where its family does not fix them.

    Raises:
        FileNotFoundError, UserError: the file is missing, damaged, or of no known family.
    """
    refuse_hub(file)
    if format_of(file) is not None:
        form, facts = read_facts(file)
        if "spec" not in facts:
            raise UserError(f"{file}: does not say which network it is; write it with tool.export")
        checkpoint.check_ours(facts, file)
        return facts | {"export": form}
    state = checkpoint.load(file)
    if checkpoint.is_ours(state):
        checkpoint.check_ours(state, file)
        return state
    try:
        found = recognise_family(state)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    options = (options or {}) if found.model == network else {}
    fixed = found.model is None or layout_of(found.family).for_classes or len(classes) != found.num_classes
    translated = translate(state, file, options, None if fixed else classes)
    log.info("published checkpoint %s: %s", file, translated.report)
    return dict(translated.entries())


def refuse_hub(file: str | Path) -> None:
    """Refuse a place on the Hub where a file is needed.

    Raises:
        UserError: says how it becomes a file.
    """
    if str(file).startswith("hf:/"):
        raise UserError(
            f"{file}: make it a file here first: python -m tool.export hf://OWNER/NAME --to weights "
            "--out FILE.safetensors"
        )


def slim_config(config: dict) -> dict:
    """Return the part of an experiment that a later test needs.

    It names no folder of this machine.
    """
    data = {key: value for key, value in config.get("data", {}).items() if key != "root"}
    for key in [key for key in data if key.endswith("_list") and data[key] and Path(data[key]).is_absolute()]:
        del data[key]
    model = {key: value for key, value in config.get("model", {}).items() if key in ("name", "backbone", "options")}
    test = config.get("test", {}) | {"amp": "off", "optimize": "none", "engine": "torch"}
    own = {"plugins": [Path(file).name for file in config["plugins"]]} if config.get("plugins") else {}
    return {"data": data, "model": model, "train": {"epochs": 1, "batch_size": 1}, "test": test} | own


def version() -> str:
    """Return the version of this project; "source" where it is not installed."""
    try:
        return importlib.metadata.version("segmentation-framework")
    except importlib.metadata.PackageNotFoundError:
        return "source"
