"""A trained network, with what its checkpoint knows put before the experiment.

An experiment that says otherwise is refused by name. What the command line says otherwise is on purpose: it is used,
and told in the log and in metrics.json.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from dataset import SegDataset
from model.published import recognise_family
from model.table import ModelError
from tool.shared.data import plain_label_map
from tool.shared.network import rebuild
from tool.shared.plugins import refuse_unnamed_data
from tool.shared.published import is_void, preprocessing_of, read_ours, refuse_hub
from tool.shared.results import beside
from util import UserError, checkpoint
from util.checkpoint.facts import Facts, facts_of
from util.config.load import COMMAND_LINE, Experiment, RunPaths, saved_config
from util.config.schema import PROTOCOLS, Config
from util.record.log import log


@dataclass(frozen=True)
class Trained:
    """A network as the data of an experiment need it.

    Args:
        config: the experiment with the checkpoint's preprocessing.
        network: the bare network, its weights in place.
        outputs: for each class of the data its channel of the logits; None for all as they are.
        has_void: whether the last channel stands for what no label says.
        overridden: what the command line says otherwise than the checkpoint, one line each.
    """

    config: Config
    network: nn.Module
    outputs: tuple[int, ...] | None
    has_void: bool
    overridden: tuple[str, ...]

    @property
    def num_outputs(self) -> int:
        """Count the classes that are predicted."""
        return self.network.spec["num_classes"] if self.outputs is None else len(self.outputs)

    def describe(self) -> dict[str, Any]:
        """Give what the report says of preprocessing and outputs."""
        data = self.config.data
        return {
            "mean": list(data.mean),
            "std": list(data.std),
            "channel_order": data.channel_order,
            "void": self.config.test.void if self.has_void else None,
            "overridden": list(self.overridden),
        }


def open_trained(file: str | Path, experiment: Experiment, data: SegDataset, state: dict | None = None) -> Trained:
    """Read the network of a checkpoint for the experiment and its data.

    state: what `read_ours` has read of it, where that was before.

    Raises:
        FileNotFoundError, UserError: the file is missing or damaged, or the experiment says otherwise.
    """
    config = experiment.config
    if state is None:
        state = read_ours(file, config.model.name, config.model.options, data.classes)
    facts, spec, told = facts_of(state), state["spec"], Told(str(file), experiment.sources)
    other = compare_network(spec, config, told)
    if other and "export" in state:
        raise UserError(f"{told.overridden[-1]}, and it is exported: export the checkpoint with that option")
    network = rebuild(state | {"spec": spec | {"options": spec["options"] | other}}, file)
    preprocessing = compare_preprocessing(facts, config, told)
    if "range" in preprocessing:
        data.read_range(preprocessing["range"])
    outputs = compare_classes(facts, spec["num_classes"], data, config, told)
    has_void = spec["num_classes"] == len(data.classes) + 1
    if config.test.void == "class":
        if not has_void:
            raise UserError(f"test.void: class needs a network with an output for what is ignored; {file} has none")
        outputs = None if outputs is None else (*outputs, len(data.classes))
        outputs = None if outputs == tuple(range(len(data.classes) + 1)) else outputs
    for line in told.overridden:
        log.warning("%s", line)
    for line in told.notes:
        log.info("%s", line)
    changed = config.model_copy(update={"data": config.data.model_copy(update=preprocessing)})
    return Trained(changed, network, outputs, has_void, tuple(told.overridden))


@dataclass(frozen=True)
class Told:
    """What differs between a checkpoint and an experiment, while they are compared."""

    file: str
    sources: Mapping[str, str]  # section.key -> where the experiment says it; missing: nowhere
    overridden: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def by_command_line(self, *keys: str) -> bool:
        """Tell whether the command line says one of the keys."""
        return any(COMMAND_LINE in self.sources.get(key, "") for key in keys)

    def differ(self, key: str, known: object, said: object) -> None:
        """Note a key that differs, which only the command line may.

        Raises:
            UserError: the experiment says it otherwise.
        """
        line = f"{key} is {_text(said)}, {self.file} was trained with {_text(known)}"
        if not self.by_command_line(key):
            source = self.sources.get(key, "the experiment")
            raise UserError(
                f"{source}: {line}. Leave the key out, since a checkpoint knows its own, or write "
                f"{key}={_text(said)} on the command line to have it otherwise"
            )
        self.overridden.append(f"by the command line {line}")


def compare_network(spec: dict, config: Config, told: Told) -> dict[str, object]:
    """Give the options that the command line says otherwise than the checkpoint.

    Raises:
        UserError: the experiment is of another network.
    """
    model, sources = config.model, told.sources
    for key, known, said in (("name", spec["name"], model.name), ("backbone", spec["backbone"], model.backbone)):
        if known != said and (key == "name" or said is not None):
            raise UserError(
                f"{told.file} holds the network {_network(spec['name'], spec['backbone'])}, "
                f"{sources.get(f'model.{key}', 'the experiment')} says {_network(model.name, model.backbone)}. Name "
                "the experiment of that network, or leave out --config: the checkpoint knows its own"
            )
    other = {name: value for name, value in model.options.items() if spec["options"].get(name) != value}
    for name, value in other.items():
        known = spec["options"].get(name)
        line = f"model.options.{name} is {_text(value)}, {told.file} was trained with {_text(known)}"
        if not told.by_command_line("model.options"):
            raise UserError(
                f"{sources.get('model.options', 'the experiment')}: {line}. Leave it out, or write "
                f"'model.options={{{name}: {_text(value)}}}' on the command line to have it otherwise"
            )
        told.overridden.append(f"by the command line {line}")
    return other


def compare_preprocessing(facts: Facts, config: Config, told: Told, init: bool = False) -> dict[str, Any]:
    """Give the checkpoint's preprocessing, but for what the command line says.

    Args:
        init: the experiment trains on, with its own values even where it is silent.

    Raises:
        UserError: the experiment says otherwise.
    """
    known = {"mean": facts.mean, "std": facts.std, "channel_order": facts.channel_order, "range": facts.limits}
    chosen = {}
    if facts.mean is not None and len(facts.mean) != config.data.channels:
        raise UserError(
            f"{told.file} was trained with images of {len(facts.mean)} channels, "
            f"data.channels is {config.data.channels}"
        )
    for name, value in known.items():
        said, key = getattr(config.data, name), f"data.{name}"
        unsaid = facts.mean is None if name == "range" else value is None  # no range is one, too
        if unsaid or _same(value, said):
            continue
        if key in told.sources or init:
            told.differ(key, value, said)
        else:
            chosen[name] = value
    if chosen:
        told.notes.append("preprocessing of the checkpoint: " + ", ".join(f"{k} {_text(v)}" for k, v in chosen.items()))
    return chosen


def compare_classes(facts: Facts, outputs: int, data: SegDataset, config: Config, told: Told) -> tuple[int, ...] | None:
    """Give the channel of the logits for each class of the data.

    None stands for all of them in their order.

    Args:
        outputs: channels of the network's logits.

    Raises:
        UserError: the network knows other classes.
    """
    names, known = tuple(data.classes), facts.classes
    if outputs not in (len(names), len(names) + 1) or (outputs > len(names) and not (known and is_void(known))):
        raise UserError(
            f"{told.file}: trained for {outputs} classes ({', '.join((known or ())[:4])}, ...), "
            f"but data set {config.data.name} has {len(names)}"
        )
    if known is None:
        told.notes.append(f"{told.file} does not say the names of its classes; those of {config.data.name} are assumed")
        return None
    if known[: len(names)] == names:
        return None if outputs == len(names) else tuple(range(len(names)))
    if sorted(known[: len(names)]) != sorted(names):
        other = [f"{a} for {b}" for a, b in zip(names, known, strict=False) if a != b]
        if not told.by_command_line("data.classes"):
            raise UserError(
                f"{told.file} was trained for other classes than those of data set {config.data.name}: "
                f"{', '.join(other[:6])}{' and more' if len(other) > 6 else ''}. Write the names of the checkpoint as "
                f"data.classes: [{', '.join(known[: len(names)])}], or yours on the command line to have it otherwise"
            )
        told.overridden.append(f"by the command line other class names than those of {told.file}: {', '.join(other)}")
        return None if outputs == len(names) else tuple(range(len(names)))
    _compare_ids(facts, data, config, told)
    told.notes.append(f"classes of {told.file} in another order: {', '.join(known)}; its outputs are put in order")
    return tuple(known.index(name) for name in names)


def _compare_ids(facts: Facts, data: SegDataset, config: Config, told: Told) -> None:
    """Refuse classes in another order whose ids on disk stand for other names than in the training.

    Raises:
        UserError: names the first id, the name that it had, and the one it has.
    """
    if facts.label_map is None or facts.classes is None or facts.dataset != config.data.name:
        return
    for value, index in plain_label_map(data).items():
        before = facts.label_map.get(value, 255)
        if 255 in (before, index) or facts.classes[before] == data.classes[index]:
            continue
        line = (
            f"value {value} of the label files is {data.classes[index]}, in the training of {told.file} it was "
            f"{facts.classes[before]}"
        )
        if not told.by_command_line("data.classes", "data.label_map"):
            raise UserError(f"{line}. Give data.label_map, or the classes in the order of the checkpoint")
        told.overridden.append(f"by the command line {line}")
        return


def check_init(experiment: Experiment, classes: Sequence[str]) -> None:
    """Compare the checkpoint that a training starts from with the experiment.

    Raises:
        UserError: it is of another network, preprocessing or classes, and `model.init_skip` leaves nothing out.
    """
    config = experiment.config
    if not config.model.init:
        return
    refuse_hub(config.model.init)
    state, told = checkpoint.load(config.model.init), Told(config.model.init, experiment.sources)
    ours = checkpoint.is_ours(state)
    if ours:
        checkpoint.check_ours(state, config.model.init)
        facts = facts_of(state)
    else:
        try:
            facts = preprocessing_of(recognise_family(state))
        except ModelError:
            return  # whoever loads it says what does not fit, or finds that model.init_skip allows it
    compare_preprocessing(facts, config, told, init=True)
    if ours and not config.model.init_skip:
        compare_network(state["spec"], config, told)
    known = None if config.model.init_skip else facts.classes
    if known is not None and sorted(known) != sorted(classes) and not told.by_command_line("data.classes"):
        raise UserError(
            f"model.init: {told.file} was trained for other classes ({', '.join(known[:4])}, ...) than "
            f"{', '.join(classes[:4])}, ...; leave its last layers out with model.init_skip, or write data.classes "
            "on the command line"
        )
    for line in told.overridden:
        log.warning("%s", line)


def experiment_of(
    file: str | Path, overrides: Sequence[str], folder: str | Path | None = None
) -> tuple[Experiment, dict]:
    """Give the experiment that a checkpoint knows, and its content.

    Args:
        overrides: `section.key=value`; a checkpoint that no run of ours has written needs data.root.
        folder: of the results; default: the file's name with .result for its suffix.

    Raises:
        FileNotFoundError, UserError: the file cannot be used, or an override is wrong.
    """
    state = read_ours(file)
    facts, spec = facts_of(state), state["spec"]
    if "config" in state:
        refuse_unnamed_data(state, file, [override.partition("=")[0] for override in overrides])
        raw = state["config"]
        if any(override.startswith("test.protocol=") for override in overrides):  # whose keys the run has filled in
            test = {key: value for key, value in raw.get("test", {}).items() if key not in PROTOCOLS["whole"]}
            raw = raw | {"test": test}
    else:
        data: dict[str, Any] = {"name": facts.dataset or "custom"}
        if facts.classes is not None and data["name"] == "custom":
            void = is_void(facts.classes)
            data["classes"] = list(facts.classes[:-1] if void else facts.classes)
        model = {key: spec[key] for key in ("name", "backbone", "options")}
        raw = {"data": data, "model": model, "train": {"epochs": 1, "batch_size": 1}}
        raw |= {"test": facts.protocol} if facts.protocol else {}
    config = saved_config(raw, str(file), overrides)
    sources = {override.partition("=")[0]: COMMAND_LINE for override in overrides}
    run = RunPaths(Path(folder), Path(folder) / "result") if folder else beside(file)
    note = f"the experiment that {file} knows: {spec['name']}, data set {config.data.name}"
    return Experiment(config, run, (note,), sources, tuple(sys.argv)), state


def _network(name: str, backbone: str | None) -> str:
    return f"{name} on {backbone}" if backbone else name


def _same(known: object, said: object) -> bool:
    if isinstance(known, tuple) and isinstance(said, tuple):
        numbers = all(isinstance(value, int | float) for value in (*known, *said))
        if numbers and len(known) == len(said):
            return all(map(partial(math.isclose, rel_tol=1e-4), known, said))
    return known == said


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(_text, value)) + "]"
    return f"{value:.9g}" if isinstance(value, float) else str(value)
