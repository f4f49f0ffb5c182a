"""The manifest of a checkpoint: facts about the file, sealed, written last."""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from util import UserError
from util.record.files import read_text, replacing, sha256

MAX_BYTES = 1 << 20
NAME = re.compile(r"epoch_\d{4,}|step_\d{8,}")  # of a run's checkpoints, without their suffix


@dataclass(frozen=True)
class Manifest:
    """Facts about one checkpoint, known without reading it.

    serial counts the checkpoints of the folder; run is the same for all of a run. epoch: epochs that are done.
    best: file name of the best checkpoint at that time. config, data: SHA-256 of experiment and facts of the data.
    """

    file: str
    sha256: str
    size: int
    serial: int
    run: str
    step: int
    epoch: int
    best: str | None
    config: str
    data: str

    def damage(self, folder: Path) -> str | None:
        """Return why the file cannot be used, or None.

        folder: where it is.
        """
        path = folder / self.file
        if not path.is_file():
            return "it is a folder" if path.is_dir() else "the file is missing"
        try:
            size = path.stat().st_size
            if size != self.size:
                return f"it has {size} bytes, its manifest says {self.size}"
            if sha256(path) != self.sha256:
                return "its SHA-256 is not that of its manifest"
        except OSError as error:
            return f"it cannot be read ({error.strerror})"
        return None

    def describes(self, path: Path) -> bool:
        """Tell whether `path` holds the bytes of this checkpoint."""
        return (
            path.is_file()
            and not path.is_symlink()
            and path.stat().st_size == self.size
            and sha256(path) == self.sha256
        )


def epoch_name(epoch: int) -> str:
    return f"epoch_{epoch:04}"


def step_name(step: int) -> str:
    return f"step_{step:08}"


def digest(value: dict) -> str:
    """Return the SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `manifest` with its seal.

    The file is on the disk on return.
    """
    with replacing(path, durable=True) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(asdict(manifest) | {"seal": digest(asdict(manifest))}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        UserError: it is none, was changed, or is that of another file.
    """
    try:
        content = json.loads(read_text(path, MAX_BYTES))
    except RecursionError:
        raise UserError("nested too deeply") from None
    names = {field.name for field in fields(Manifest)}
    if not isinstance(content, dict) or content.keys() != names | {"seal"}:
        raise UserError("not a manifest")
    if content.pop("seal") != digest(content):
        raise UserError("it was changed")
    # The seal tells damage, not malice: who can write here can make one.
    kinds: dict[str, Any] = {"serial": int, "size": int, "step": int, "epoch": int, "best": (str, type(None))}
    wrong = [name for name in names if not isinstance(content[name], kinds.get(name, str))]
    if wrong or not (content["best"] is None or NAME.fullmatch(content["best"].removesuffix(".pth"))):
        raise UserError(f"its {(wrong or ['best'])[0]} is {content[(wrong or ['best'])[0]]!r}")
    if content["file"] != f"{path.stem}.pth":
        raise UserError(f"it is the manifest of {content['file']}")
    return Manifest(**content)


def checkpoint_files(folder: Path, suffix: str) -> list[Path]:
    """List what is named as a run's checkpoints are, before `suffix`."""
    return sorted(path for path in folder.glob(f"*{suffix}") if NAME.fullmatch(path.name.removesuffix(suffix)))


def read_manifests(folder: Path) -> tuple[list[Manifest], dict[str, str]]:
    """Read the manifests of a folder, newest first.

    The second dictionary says why others cannot be read, by checkpoint file.
    """
    found, damaged = [], {}
    for path in checkpoint_files(folder, ".json"):
        try:
            found.append(read_manifest(path))
        except (ValueError, OSError) as error:
            damaged[f"{path.stem}.pth"] = f"its manifest {path.name} is unreadable ({error})"
    return sorted(found, key=lambda manifest: -manifest.serial), damaged
