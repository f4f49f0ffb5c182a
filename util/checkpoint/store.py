"""The checkpoints of a run, in the folder `model/` of it.

    epoch_0003.pth  epoch_0003.json     a checkpoint at the end of an epoch, and its manifest
    step_00000123.pth  ...json          one inside an epoch
    last.pth  best.pth                  the newest and the best of them (links; copies where there are none)

A checkpoint counts once its manifest is there, which is written last and holds the file's size and SHA-256. Older ones
are deleted only then. What is found damaged is named, put aside, and the one before it is used.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from util import checkpoint
from util.record import status
from util.record.files import TEMPORARY, read_text, replacing, sha256
from util.record.log import log

MAX_MANIFEST = 1 << 20  # bytes
# What file systems answer that have no hard links.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


@dataclass(frozen=True)
class Manifest:
    """What is known of one checkpoint without reading it.

    serial counts the checkpoints of the folder; run is the same for all of a run. epoch: epochs that are closed.
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


class Store:
    """Writes and finds the checkpoints of a run; only the main process has one that is used.

    keep_last: how many of the newest stay. keep_every: each epoch whose number it divides stays as well, 0: none.
    """

    def __init__(self, folder: Path, keep_last: int = 2, keep_every: int = 0):
        self.folder, self.keep_last, self.keep_every = folder, keep_last, keep_every
        self.run, self.serial, self.best = uuid.uuid4().hex, 0, None
        self.continued = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None
        self._newest = ""

    # reading

    def open(self) -> None:
        """Removes what a killed run left half written, and counts on from the checkpoints that are there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(f".*{TEMPORARY}"):
            log.info("removed %s, which a killed run left half written", path)
            path.unlink()
        self.serial = max((manifest.serial for manifest in self._manifests()[0]), default=0)

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole; None if there is none at all. Damaged ones are named and put aside.

        Raises:
            ValueError: there are checkpoints, and every one is damaged; lists them.
        """
        found, damaged = self._manifests()
        good = None
        for manifest in found:
            reason = self._damage(manifest)
            if reason is None:
                good = manifest
                break
            damaged[manifest.file] = reason
        self._put_aside(damaged)
        self._drop_unfinished({manifest.file for manifest in found})
        if good is None:
            return self._without_manifest(damaged)
        self.run, self.best, self.continued = good.run, good.best, True
        self._check_best(found)
        self._point("last", good.file)
        return self.folder / good.file

    def _manifests(self) -> tuple[list[Manifest], dict[str, str]]:
        """The readable manifests, newest first, and why others are not, by the file they belong to."""
        found, damaged = [], {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                manifest = _read_manifest(path)
            except (ValueError, OSError) as error:
                damaged[f"{path.stem}.pth"] = f"its manifest {path.name} is unreadable ({error})"
                continue
            found.append(manifest)
        return sorted(found, key=lambda manifest: -manifest.serial), damaged

    def _damage(self, manifest: Manifest) -> str | None:
        """Why the file of a manifest cannot be used, or None."""
        path = self.folder / manifest.file
        if not path.is_file():
            return "it is a folder" if path.is_dir() else "the file is missing"
        try:
            size = path.stat().st_size
            if size != manifest.size:
                return f"it has {size} bytes, its manifest says {manifest.size}"
            if sha256(path) != manifest.sha256:
                return "its SHA-256 is not that of its manifest"
        except OSError as error:
            return f"it cannot be read ({error.strerror})"
        return None

    def _put_aside(self, damaged: dict[str, str]) -> None:
        for name, reason in damaged.items():
            path = self.folder / name
            path.with_suffix(".json").unlink(missing_ok=True)
            aside = _aside(path)
            outcome = f"put aside as {aside}" if aside else "its file is missing"
            log.warning("checkpoint %s is damaged: %s; not used, %s", path, reason, outcome)

    def _drop_unfinished(self, known: set[str]) -> None:
        """Removes checkpoints that have no manifest: their run was killed before it was written."""
        for path in [*self.folder.glob("step_*.pth"), *self.folder.glob("epoch_*.pth")]:
            if path.name not in known:
                log.warning("checkpoint %s is incomplete, its manifest is missing; not used", path)
                _aside(path) if path.is_dir() else path.unlink()

    def _without_manifest(self, damaged: dict[str, str]) -> Path | None:
        """last.pth by itself, as one that was copied here, if it is whole by the checksums inside it."""
        last, reason = self.folder / "last.pth", None
        if last.is_file():
            reason = checkpoint.damage(last)
            if reason is None:
                log.info("%s has no manifest; its own checksums are right", last)
                self.continued = True
                return last
        if damaged or reason:
            lines = [f"{self.folder / name}: {why}" for name, why in damaged.items()]
            lines += [f"{last}: {reason}"] if reason else []
            raise ValueError(
                "no checkpoint of this run is whole:\n  " + "\n  ".join(lines) + "\nPut one back from a copy, "
                "start anew with train.resume=never, or use another --exp folder"
            )
        return None

    def _check_best(self, found: list[Manifest]) -> None:
        """Has best.pth say what the newest checkpoint says."""
        manifest = next((manifest for manifest in found if manifest.file == self.best), None)
        if self.best is None:
            return
        reason = "it is missing" if manifest is None else self._damage(manifest)
        if reason is None:
            self._point("best", self.best)
        else:
            log.warning(
                "checkpoint %s, the best so far, is lost: %s; the next better one takes its place",
                self.folder / self.best,
                reason,
            )

    # writing

    def save(self, name: str, state: dict, facts: dict, improved: bool, wait: bool) -> None:
        """Starts to write `state`, which nobody may change any more, as NAME.pth; one at a time.

        facts: step, epoch, config and data of its manifest. improved: it is the best so far.
        wait: until it is on the disk.

        Raises:
            OSError: this one (if waited for), or the one before, could not be written.
        """
        self.wait()
        if name != self._newest or improved:  # else it was just written
            self._newest = name
            self._pending = self._pool.submit(self._write, name, state, facts, improved)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until the last checkpoint is on the disk; its error is raised here."""
        pending, self._pending = self._pending, None
        if pending is not None:
            if not pending.done():
                status.note(state="saving")
            pending.result()

    def close(self) -> None:
        """Ends the thread, once what it writes is on the disk; an error that nobody waited for is logged."""
        try:
            self.wait()
        except OSError as error:
            log.error("the last checkpoint was not written: %s", error)
        self._pool.shutdown()

    def _write(self, name: str, state: dict, facts: dict, improved: bool) -> None:
        path = self.folder / f"{name}.pth"
        path.with_suffix(".json").unlink(missing_ok=True)
        sha256, size = checkpoint.save(path, state)
        best = path.name if improved else self.best
        manifest = Manifest(path.name, sha256, size, self.serial + 1, self.run, best=best, **facts)
        notes = path.with_suffix(".json")
        with replacing(notes, durable=True) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump(asdict(manifest) | {"seal": digest(asdict(manifest))}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        self.serial, self.best = manifest.serial, best
        self._point("last", path.name)
        if improved:
            self._point("best", path.name)
        elif best is None and not self.continued:
            (self.folder / "best.pth").unlink(missing_ok=True)  # that of the run before
        self._prune()
        status.saved(path, manifest.step)

    def _point(self, alias: str, name: str) -> None:
        """Has last.pth or best.pth be the checkpoint `name`."""
        link, target = self.folder / f"{alias}.pth", self.folder / name
        if link.is_file() and os.path.samefile(link, target):
            return
        if link.is_dir():
            _aside(link)
        _link(target, link)

    def keep(self, path: Path) -> bool:
        """Gives the checkpoint from which the run would continue now the second name `path`; False if there is none."""
        self.wait()
        if not (self.continued or self._newest):
            return False
        _link(self.folder / "last.pth", path)
        return True

    def _prune(self) -> None:
        """Deletes what neither the newest, nor their best, nor `keep_every` hold."""
        found, _ = self._manifests()
        own = [manifest for manifest in found if manifest.run == self.run]
        newest = own[: self.keep_last]
        kept = {manifest.file for manifest in newest} | {manifest.best for manifest in newest}
        for manifest in found:
            if manifest.file in kept or (manifest in own and self._for_ever(manifest)):
                continue
            path = self.folder / manifest.file
            path.with_suffix(".json").unlink(missing_ok=True)  # first: without it the other does not count
            path.unlink(missing_ok=True)

    def _for_ever(self, manifest: Manifest) -> bool:
        closed = manifest.file == f"{epoch_name(manifest.epoch)}.pth"
        return bool(self.keep_every) and closed and manifest.epoch % self.keep_every == 0


def _link(source: Path, path: Path) -> None:
    """Has `path`, whatever was there, be the same file as `source`; a copy where the file system has no links."""
    with replacing(path, durable=True) as temporary:
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            shutil.copyfile(source, temporary)
            with open(temporary, "rb") as copy:
                os.fsync(copy.fileno())


def epoch_name(epoch: int) -> str:
    return f"epoch_{epoch:04}"


def step_name(step: int) -> str:
    return f"step_{step:08}"


def digest(value: dict) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _read_manifest(path: Path) -> Manifest:
    try:
        content = json.loads(read_text(path, MAX_MANIFEST))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    names = {field.name for field in fields(Manifest)}
    if not isinstance(content, dict) or content.keys() != names | {"seal"}:
        raise ValueError("not a manifest")
    if content.pop("seal") != digest(content):
        raise ValueError("it was changed")
    if content["file"] != f"{path.stem}.pth":
        raise ValueError(f"it is the manifest of {content['file']}")
    return Manifest(**content)


def _aside(path: Path) -> Path | None:
    """Renames what is in the way, whatever it is; its new name."""
    if not os.path.lexists(path):
        return None
    target, count = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(target):
        count += 1
        target = path.with_name(f"{path.name}.damaged{count}")
    os.rename(path, target)
    return target
