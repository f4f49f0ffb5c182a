"""The model card of a checkpoint: use, classes, scores, licences, papers."""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from dataset import DATASETS, dataset_class
from model import MODELS
from model.table import load
from tool.shared.plugins import own_code
from tool.shared.published import version, without_void
from util import UserError
from util.checkpoint.facts import Facts, facts_of
from util.record.files import read_text, sha256
from util.report.html import colour, percent

LARGEST = 2**26  # bytes of a metrics.json
PROTOCOL = ("scales", "flip", "window", "stride_rate", "base_size")


def paper_of(builder: type) -> str:
    """Find the paper that a network's docstring, or its base class's, cites."""
    for kind in inspect.getmro(builder):
        text = " ".join((kind.__doc__ or "").split())
        found = re.search(r"[A-Z][a-z]+ et al\.,? (?:\".*?\"|[A-Z]\w+),? ?(?:\([^)]*\)|IEEE Access \d{4})", text)
        if found:
            return found[0]
    raise UserError(f'the docstring of {builder.__name__} cites no paper: Author et al., "Title" (where, year)')


def results_of(file: Path) -> list[dict[str, Any]]:
    """Read the results beside a checkpoint that are of this very file.

    Those of its run, and those of FILE.result, known by the file's SHA-256; results of a part of a list are left out.

    Raises:
        UserError: a metrics.json is damaged.
    """
    places = [file.with_suffix(".result"), *([file.resolve().parents[1] / "result"] if file.parent.name else [])]
    names = [path for place in places for path in sorted(place.glob("**/metrics.json"))]
    names = [path for path in names if not path.parent.name.startswith("part-")]
    digest, found = sha256(file) if names else "", []
    for path in names:
        try:
            metrics = json.loads(read_text(path, LARGEST))
            of_this = (metrics["checkpoint"] or {}).get("sha256") == digest
            sound = isinstance(metrics["classes"], list) and isinstance(metrics["protocol"] or {}, dict)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); evaluate the file again") from None
        said = [known["protocol"] == metrics["protocol"] and known["classes"] == metrics["classes"] for known in found]
        found += [metrics] if of_this and sound and not any(said) else []  # a run's own, and one that repeats it
    return found


def model_card(file: Path, state: Mapping[str, Any], network: nn.Module, name: str, licence: str | None = None) -> str:
    """Write the card of a checkpoint, in Markdown.

    Args:
        file: the checkpoint, beside which results are looked for.
        state: its content. network: built from it.
        name: the repository, "owner/name".
        licence: of the weights, by the Hub's name.
    """
    facts, spec = facts_of(state), network.spec
    outputs = without_void(facts, spec["num_classes"])
    count = len(outputs or range(spec["num_classes"]))
    classes = list((facts.classes or [f"class {index}" for index in range(count)])[:count])
    kind = f"{spec['name']} on {spec['backbone']}" if spec["backbone"] else str(spec["name"])
    trained = f", trained on {facts.dataset}" if facts.dataset not in (None, "custom") else ""
    results = results_of(file)
    parts = [
        _front_matter(name, spec, facts, results, licence),
        f"# {name.partition('/')[2]}\n\nSemantic segmentation: {kind}, {count} classes{trained}.",
        _use(name, state),
        _classes(classes, facts),
        _preprocessing(facts),
        _scores(results),
        _data(facts),
        f"## Citation\n\nThe network is the work of its authors; please cite\n\n> {_paper(spec)}",
        _origin(state),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(
    name: str, spec: Mapping[str, Any], facts: Facts, results: Sequence[Mapping[str, Any]], licence: str | None
) -> str:
    """What the Hub reads: its tags, and the scores in the form of its model index."""
    content: dict[str, Any] = {"pipeline_tag": "image-segmentation", "tags": ["semantic-segmentation", spec["name"]]}
    if licence is not None:
        content["license"] = licence
    entries = [
        {
            "task": {"type": "image-segmentation"},
            "dataset": {
                "name": facts.dataset or "unknown",
                "type": facts.dataset or "unknown",
                "split": (metrics["protocol"] or {}).get("split", "unknown"),
            },
            "metrics": [
                {"type": key, "name": key, "value": round(100 * metrics[key], 2)}
                for key in ("mIoU", "mAcc", "allAcc")
                if isinstance(metrics.get(key), int | float)
            ],
        }
        for metrics in results
    ]
    if entries:
        content["model-index"] = [{"name": name.partition("/")[2], "results": entries}]
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


def _use(name: str, state: Mapping[str, Any]) -> str:
    own = own_code(state)
    asked = f", plugins={own!r}" if own else ""
    lines = [
        "## Use",
        "",
        f"With the framework that trained it (segmentation-framework {version()}):",
        "",
        "```python",
        "from tool.predict import Segmenter",
        f'segmenter = Segmenter("hf://{name}"{asked})',
        'mask = segmenter("photo.jpg").mask  # uint8 (H, W), class ids at the size of the picture',
        "```",
    ]
    if own:
        lines += ["", f"It needs code outside of the framework: {', '.join(own)}. A checkpoint alone never imports it."]
    return "\n".join(lines)


def _classes(classes: Sequence[str], facts: Facts) -> str:
    colors = None if facts.colors is None else [colour(color) for color in facts.colors[: len(classes)]]
    lines = ["## Classes", "", "| id | class | colour |", "|---|---|---|"]
    for index, name in enumerate(classes):
        lines.append(f"| {index} | {_cell(name)} | {'' if colors is None else colors[index]} |")
    return "\n".join(lines)


def _preprocessing(facts: Facts) -> str:
    mean, std = facts.normalisation
    order = ", ".join(facts.channel_order.upper()) if len(mean) == 3 else f"the {len(mean)} bands of the images"
    lines = [
        "## Preprocessing and protocol",
        "",
        "`Segmenter` does this by itself.",
        "",
        f"- Channels: {order}; values 0 to 255.",
        f"- Mean {_numbers(mean)}, deviation {_numbers(std)}" + (", of R, G, B." if len(mean) == 3 else "."),
    ]
    if facts.limits is not None:
        lines.append(f"- Values that become 0 and 255: {_numbers(facts.limits)}.")
    said = {key: value for key, value in (facts.protocol or {}).items() if key in PROTOCOL and value is not None}
    if said:
        lines.append("- Test protocol: " + ", ".join(f"{key} {_numbers(value)}" for key, value in said.items()) + ".")
    return "\n".join(lines)


def _scores(results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return "## Scores\n\nNone were measured with this file."
    lines = ["## Scores", "", "In percent, from one confusion matrix over all images."]
    for metrics in results:
        protocol = metrics["protocol"] or {}
        said = ", ".join(f"{key} {_numbers(protocol[key])}" for key in PROTOCOL if protocol.get(key) is not None)
        lines += [
            "",
            f"**{protocol.get('split', 'images')}**, {metrics['num_images']} images"
            + (f"; {said}" if said else "")
            + f": mIoU {percent(metrics['mIoU'])}, mAcc {percent(metrics['mAcc'])}, "
            f"pixel accuracy {percent(metrics['allAcc'])}",
            "",
            "| class | IoU | accuracy |",
            "|---|---|---|",
            *(
                f"| {_cell(row['name'])} | {percent(row['iou'])} | {percent(row['acc'])} |"
                for row in metrics["classes"]
            ),
        ]
    return "\n".join(lines)


def _data(facts: Facts) -> str:
    name = facts.dataset
    if name == "street":
        return "## Data\n\nstreet: scenes drawn by the framework itself, free of rights."
    layout = getattr(dataset_class(name), "layout", None) if name in DATASETS else None
    if layout is None:
        return "## Data\n\nThe checkpoint does not say under which terms its training pictures stand."
    return (
        f"## Data\n\n{name}, from {layout.source}. Licence: {layout.licence}. "
        "Whether weights trained on it may be used otherwise than the pictures, its licence decides."
    )


def _paper(spec: Mapping[str, Any]) -> str:
    builder = load(MODELS[spec["name"]])
    try:
        return paper_of(builder)  # type: ignore[arg-type]  # a function has no bases, and cites by itself
    except (UserError, AttributeError):
        return f"whoever wrote {spec['name']}: its docstring names no paper"


def _origin(state: Mapping[str, Any]) -> str:
    origin = state.get("provenance")
    if not isinstance(origin, dict):
        return ""
    lines = [f"- {key}: `{value}`" for key, value in origin.items() if isinstance(value, str | int | float)]
    return "\n".join(["## Origin", "", "Converted from a published checkpoint.", "", *lines])


def _numbers(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_numbers(each) for each in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
