"""The older flat YAML of semseg and Sketch-and-Fill, read unchanged.

Its sections are DATA, TRAIN, Distributed, TEST. `translate` turns it into the mapping that `util.config.check_config`
checks, and says in one note per key what no longer means anything. Their launch keys (ports, ranks, GPU lists) belong
to the launcher today.
"""

import difflib
import os
from ast import literal_eval
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from util.config.yamltext import ConfigError
from util.record.files import read_text

SECTIONS = ("DATA", "TRAIN", "Distributed", "TEST")
NETWORKS = {  # arch -> (name, does the older program of this family shift ADE20K's ids itself)
    "sfnet": ("sketchfill", True),
    "sfnet_mobile": ("sketchfill", True),
    "psp": ("pspnet", False),
    "pspnet": ("pspnet", False),
}
KNOWN_DATA = ("cityscapes", "ade20k", "rugd", "camvid")  # whose names files the older repositories ship
WITHOUT_MEANING = {
    "train_gpu": "the launcher uses all visible GPUs; choose with NGPU or CUDA_VISIBLE_DEVICES",
    "test_gpu": "the launcher uses all visible GPUs; choose with NGPU or CUDA_VISIBLE_DEVICES",
    "dist_url": "the launcher finds a free port",
    "dist_backend": "NCCL on GPUs, gloo on CPUs",
    "multiprocessing_distributed": "one process per GPU, always",
    "world_size": "NNODES tells the launcher the number of machines",
    "rank": "NODE_RANK tells the launcher which machine this is",
    "keep_batchnorm_fp32": "batch norm stays in float32 under autocast",
    "loss_scale": "the loss scale of fp16 is dynamic",
    "batch_size_val": "validation sees whole pictures one by one",
    "start_epoch": "a run continues from its own checkpoint",
    "resume": "the same command continues from the run's last checkpoint",
}
DEFAULTS = {  # what the older programs assume where a key may be absent or empty
    "ignore_label": 255,
    "aux_weight": 0.4,
    "zoom_factor": 8,
    "sync_bn": False,
    "output_stride": None,
    "power": 0.9,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "manual_seed": 0,
    "print_freq": 10,
    "save_freq": 1,
    "save_path": None,
    "weight": None,
    "evaluate": False,
    "workers": 4,
    "use_apex": False,
    "opt_level": "O0",
    "split": "val",
    "test_list": None,
    "base_size": None,
    "test_h": None,
    "test_w": None,
    "scales": [1.0],
    "has_prediction": False,
    "index_start": 0,
    "index_step": 0,
    "model_path": None,
    "save_folder": None,
    "colors_path": None,
    "names_path": None,
    "scale_min": 0.5,
    "scale_max": 2.0,
    "rotate_min": -10,
    "rotate_max": 10,
}
REQUIRED = (
    "data_root",
    "train_list",
    "val_list",
    "classes",
    "arch",
    "layers",
    "train_h",
    "train_w",
    "batch_size",
    "base_lr",
    "epochs",
)
KINDS: dict[
    str, type | tuple[type, ...]
] = {  # of the values that are worked with here; `check_config` sees to the others
    "classes": int,
    "layers": int,
    "workers": int,
    "ignore_label": int,
    "arch": str,
    "opt_level": str,
    "names_path": str,
    "colors_path": str,
    "save_path": str,
    "save_folder": str,
    "model_path": str,
    "weight": str,
    "train_gpu": (list, tuple),
}
MAX_BYTES = 1 << 20  # of a file of names or colours
MAX_VALUE = 1000  # letters of an override that is read as a Python value; a longer one is text


@dataclass(frozen=True)
class LegacyPaths:
    """The folders that an old file names itself."""

    folder: Path
    result: Path | None
    checkpoint: Path | None


def is_legacy(raw: dict) -> bool:
    """Tell whether a mapping has the older sections."""
    return "DATA" in raw or "TRAIN" in raw


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate `KEY VALUE` pairs from `section.key=value`; return both.

    Raises:
        ConfigError: a KEY has no VALUE.
    """
    new: list[str] = []
    pairs: list[str] = []
    for argument in arguments:
        waiting = len(pairs) % 2 == 1
        (pairs if waiting or "=" not in argument else new).append(argument)
    if len(pairs) % 2:
        raise ConfigError(f"override '{pairs[-1]}' has no value; the older style is KEY VALUE")
    return pairs, new


def translate(raw: dict, pairs: list[str], name: str) -> tuple[dict, LegacyPaths, list[str]]:
    """Translate an old file; return mapping, folders, notes.

    The notes say what was dropped. An error names the overrides, too.

    Args:
        raw: the old file.
        pairs: `KEY VALUE` overrides, each key alone or as SECTION.KEY.
        name: path of the file, for errors; also the run's folder if the file names none.

    Raises:
        ConfigError: an unknown section, key or network, a missing key, or a names file that is missing.
    """
    try:
        return _translate(raw, pairs, name)
    except ConfigError as error:
        raise ConfigError(f"{error} (overrides: {' '.join(pairs):.200})" if pairs else str(error)) from None


def _translate(raw: dict, pairs: list[str], name: str) -> tuple[dict, LegacyPaths, list[str]]:
    """Translate as `translate`, whose errors do not name the overrides."""
    flat = _flatten(raw, name)
    _override(flat, pairs, name)
    missing = [key for key in REQUIRED if flat.get(key) is None]
    if missing:
        raise ConfigError("\n".join(f"{name}: missing key '{key}'" for key in missing))
    notes = [f"{key} has no meaning any more: {why}" for key, why in WITHOUT_MEANING.items() if flat.get(key)]
    get = {**DEFAULTS, **{k: v for k, v in flat.items() if v is not None}}
    _check_kinds(get, name)
    if get["arch"] not in NETWORKS:
        raise ConfigError(f"{name}: arch '{get['arch']}' is not supported; there are {', '.join(NETWORKS)}")
    if get["zoom_factor"] != 8:
        notes.append(f"zoom_factor {get['zoom_factor']} has no meaning any more: logits have the picture's size")
    if get["ignore_label"] != 255:
        notes.append(f"ignore_label {get['ignore_label']} is mapped to 255")
    config = {
        "data": _data(get, name, notes),
        "augment": {
            "crop": [get["train_h"], get["train_w"]],
            "scale": [get["scale_min"], get["scale_max"]],
            "rotate": [get["rotate_min"], get["rotate_max"]],
        },
        # Their number of workers is that of all processes together.
        "loader": {"workers": get["workers"] // max(len(get.get("train_gpu") or [0]), 1)},
        "model": _model(get, notes),
        "loss": {"weights": {"out": 1.0, "aux": get["aux_weight"]}},
        "optim": {
            "name": "sgd",
            "lr": get["base_lr"],
            "head_factor": 10.0,
            "momentum": get["momentum"],
            "weight_decay": get["weight_decay"],
            "power": get["power"],
        },
        "train": {
            "epochs": get["epochs"],
            "batch_size": get["batch_size"],
            "amp": _precision(get, name, notes),
            "val_every": 1 if get["evaluate"] else 0,
            "save_every": get["save_freq"],
            "log_every": get["print_freq"],
        },
        "test": _test(get),
        "seed": get["manual_seed"],
    }
    return config, _paths(get, name), notes


def _flatten(raw: dict, name: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, content in raw.items():
        if section not in SECTIONS:
            raise ConfigError(f"{name}: unknown section '{section}'; the older style has {', '.join(SECTIONS)}")
        if content is not None and not isinstance(content, dict):
            raise ConfigError(f"{name}: {section}: expected keys with values, found {type(content).__name__}")
        for key, value in (content or {}).items():
            if key not in DEFAULTS and key not in WITHOUT_MEANING and key not in REQUIRED:
                raise ConfigError(f"{name}: unknown key '{section}.{key}'{_nearest(key)}")
            flat[key] = value
    return flat


def _check_kinds(get: dict, name: str) -> None:
    for key, kind in KINDS.items():
        value = get.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            wanted = "a whole number" if kind is int else "text" if kind is str else "a list"
            raise ConfigError(f"{name}: {key}: expected {wanted}, found {type(value).__name__}")


def _nearest(key: str) -> str:
    near = difflib.get_close_matches(str(key), [*REQUIRED, *DEFAULTS, *WITHOUT_MEANING], 1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _override(flat: dict, pairs: list[str], name: str) -> None:
    for full, text in zip(pairs[::2], pairs[1::2], strict=True):
        key = full.rpartition(".")[2]
        if key not in DEFAULTS and key not in WITHOUT_MEANING and key not in REQUIRED:
            raise ConfigError(f"{name}: override of an unknown key '{full}'{_nearest(key)}")
        try:
            flat[key] = literal_eval(text) if len(text) <= MAX_VALUE else text
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # a bare word or a path is text
            flat[key] = text


def _data(get: dict, name: str, notes: list[str]) -> dict:
    data = {
        "root": get["data_root"],
        "train_list": get["train_list"],
        "val_list": get["val_list"],
        "test_list": get["test_list"],
    }
    known = _known_data(get)
    if known is not None:
        data["name"] = known
        shifts = NETWORKS[get["arch"]][1]
        if known == "ade20k" and not shifts:
            # semseg's lists point to labels that are 0..149 already; Sketch-and-Fill's to the raw 0..150.
            data["label_map"] = {i: i for i in range(get["classes"])}
        if known == "ade20k":
            how = "raw ids, 0 ignored and 1..150 -> 0..149" if shifts else "ids 0..149 as they are"
            notes.append(f"ADE20K labels are read as {how} (arch {get['arch']}); data.label_map changes that")
        return data
    classes = _names(get, name)
    data |= {"name": "custom", "classes": classes, "colors": _colors(get, name, len(classes))}
    if get["ignore_label"] != 255:
        data["label_map"] = {i: i for i in range(len(classes)) if i != get["ignore_label"]}
        data["label_map"][get["ignore_label"]] = 255
    return data


def _known_data(get: dict) -> str | None:
    """The data set whose facts the older repositories ship as NAME_names.txt, if the file names that one."""
    stem = Path(get["names_path"] or "").stem
    known = stem.removesuffix("_names")
    own_file = get["names_path"] and os.path.isfile(get["names_path"])
    sizes = {"cityscapes": 19, "ade20k": 150, "rugd": 24, "camvid": 11}
    is_known = stem.endswith("_names") and known in KNOWN_DATA and sizes[known] == get["classes"]
    return known if is_known and not own_file else None


def _names(get: dict, name: str) -> list[str]:
    if not get["names_path"]:
        raise ConfigError(f"{name}: missing key 'names_path', a text file with one class name a line")
    path = get["names_path"]
    lines = _read_lines(path, f"{name}: names_path", "one class name a line")
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != get["classes"]:
        raise ConfigError(f"{name}: names_path: {path} has {len(names)} names, but classes is {get['classes']}")
    return names


def _colors(get: dict, name: str, classes: int) -> list[list[int]] | None:
    if not get["colors_path"]:
        return None
    path = get["colors_path"]
    colors = []
    for number, line in enumerate(_read_lines(path, f"{name}: colors_path", "one 'R G B' a line"), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3 or not all(f.isdecimal() and len(f) < 4 and int(f) < 256 for f in fields):
            raise ConfigError(f"{path}:{number}: expected three values 0..255, found '{line.strip()[:40]}'")
        colors.append([int(f) for f in fields])
    if len(colors) < classes:
        raise ConfigError(f"{name}: colors_path: {path} has {len(colors)} colours for {classes} classes")
    return colors[:classes]


def _read_lines(path: str, where: str, wanted: str) -> list[str]:
    try:
        return read_text(path, MAX_BYTES).splitlines()
    except FileNotFoundError:
        raise ConfigError(f"{where}: {path} is missing; {wanted} is expected") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _model(get: dict, notes: list[str]) -> dict:
    network = NETWORKS[get["arch"]][0]
    if get["arch"] == "sfnet_mobile":
        backbone = "mobilenet_v2"
        notes.append(f"layers {get['layers']} has no meaning for sfnet_mobile: MobileNet-V2 has one depth")
    else:
        backbone = f"resnet{get['layers']}"
    options = {}
    if network == "sketchfill" and get["output_stride"] is not None:
        options["output_stride"] = get["output_stride"]
    model = {"name": network, "backbone": backbone, "options": options, "sync_bn": bool(get["sync_bn"])}
    if backbone != "mobilenet_v2" and not get["weight"]:
        model["weights"] = f"initmodel/{backbone}_v2.pth"
    elif not get["weight"]:
        model["weights"] = "initmodel/mobilenet_v2.pth"
    if get["weight"]:
        model["init"] = get["weight"]
    return model


def _precision(get: dict, name: str, notes: list[str]) -> str:
    if not get["use_apex"] or get["opt_level"] == "O0":
        return "off"
    if get["opt_level"] not in ("O1", "O2", "O3"):
        raise ConfigError(f"{name}: opt_level '{get['opt_level']}': expected O0, O1, O2 or O3")
    notes.append(f"use_apex with opt_level {get['opt_level']}: PyTorch's own autocast in fp16")
    return "fp16"


def _test(get: dict) -> dict:
    window = [get["test_h"], get["test_w"]] if get["test_h"] and get["test_w"] else "none"
    own_list = get["test_list"] is not None and get["test_list"] != get["val_list"]
    return {
        "split": "test" if own_list else get["split"],
        "protocol": "sketchfill" if get["arch"].startswith("sfnet") else "semseg",
        "scales": get["scales"],
        "window": window,
        "base_size": get["base_size"],
        "has_prediction": get["has_prediction"],
        "index_start": get["index_start"],
        "index_step": get["index_step"],
    }


def _paths(get: dict, name: str) -> LegacyPaths:
    path = Path(name)
    folder = Path("exp") / path.resolve().parent.name / path.stem
    if get["save_path"]:
        folder = Path(get["save_path"])
        folder = folder.parent if folder.name == "model" else folder
    checkpoint = Path(get["model_path"]) if get["model_path"] else None
    return LegacyPaths(folder, Path(get["save_folder"]) if get["save_folder"] else None, checkpoint)
