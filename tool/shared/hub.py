"""Trained networks on the Hugging Face Hub: fetched by `hf://owner/name`, and pushed.

What is fetched and pushed is safetensors: tensors and JSON, in which nothing can be executed.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from tool.shared.card import model_card
from tool.shared.network import rebuild
from tool.shared.published import read_ours, slim_config
from util import UserError, checkpoint
from util.record.files import write_text

SCHEME = "hf://"
WEIGHTS, CARD = "model.safetensors", "README.md"
NAME = re.compile(r"[\w.-]+/[\w.-]+")
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
# The client's own errors, and those of the HTTP library below it, which by its version is httpx or requests.
UNREACHED: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, OSError)


def is_on_hub(file: str | os.PathLike) -> bool:
    """Tell whether a checkpoint is named by its place on the Hub."""
    return isinstance(file, str) and file.startswith(SCHEME)


def local_file(file: str | os.PathLike) -> str:
    """Return a checkpoint's path on this machine.

    Args:
        file: a path, returned as it is; or hf://owner/name, hf://owner/name@revision, whose weights are fetched into
            the client's cache unless they are there.

    Raises:
        UserError: the name is none.
        OSError: there is no such repository or revision, it holds no such file, or the Hub cannot be reached.
    """
    if not isinstance(file, str) or not is_on_hub(file):
        return os.fspath(file)
    name, _, revision = file.removeprefix(SCHEME).partition("@")
    check_name(name, file)
    with one_line(file):
        return hf_hub_download(name, WEIGHTS, revision=revision or None)


def push_to_hub(
    file: str | os.PathLike, name: str, private: bool = False, licence: str | None = None, message: str | None = None
) -> str:
    """Push a checkpoint with a model card; return its address.

    The card is made from the checkpoint, and from results of this very file that lie beside it. The Hub must know you:
    `hf auth login`, or HF_TOKEN.

    Args:
        file: a checkpoint of ours, or a published one of a known family.
        name: "owner/name"; made where it is missing.
        private: of a repository that is made: seen by its owner alone.
        licence: of the weights, by the Hub's name, such as "mit" or "cc-by-nc-sa-4.0"; None says nothing.
        message: of the commit.

    Raises:
        FileNotFoundError, UserError: the file is missing, damaged or an export, or the name is none.
        OSError: the Hub cannot be reached, or refuses.
    """
    state, card = card_of(file, name, licence)
    if "config" in state:
        state = state | {"config": slim_config(state["config"])}
    with tempfile.TemporaryDirectory(prefix="hub.") as folder, one_line(SCHEME + name):
        checkpoint.save_weights(Path(folder, WEIGHTS), state)
        write_text(Path(folder, CARD), card)
        api = HfApi()
        made = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=[WEIGHTS, CARD],
            commit_message=message or f"Weights and card of {Path(file).name}",
        )
    return str(made)


def card_of(file: str | os.PathLike, name: str, licence: str | None = None) -> tuple[dict[str, Any], str]:
    """Return what a checkpoint holds, and its model card.

    Raises:
        FileNotFoundError, UserError: as `push_to_hub`.
    """
    check_name(name, name)
    if licence is not None and not LICENCE.fullmatch(licence):
        raise UserError(f"--licence {licence}: write it as the Hub does, such as mit, apache-2.0, cc-by-4.0 or other")
    state = read_ours(file)
    if "export" in state:
        raise UserError(f"{os.fspath(file)}: is exported; push the checkpoint that it comes from")
    return state, model_card(Path(file), state, rebuild(state, file), name, licence)


def check_name(name: str, asked: str) -> None:
    """Refuse what names no repository of the Hub.

    Raises:
        UserError: says how one is named.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{asked}: a repository of the Hub is OWNER/NAME, and a checkpoint there {SCHEME}OWNER/NAME")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{asked}: {' '.join(str(error).split())}") from None


@contextmanager
def one_line(asked: str) -> Iterator[None]:
    """Tell in one line what the Hub refuses.

    Raises:
        OSError: whatever the client raises inside.
    """
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise OSError(f"{asked}: neither in the cache nor to be had from the Hub ({_reason(error)})") from error
    except UNREACHED as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the system's word about a file here
        login = "; where it is private or yours to write: hf auth login, or HF_TOKEN"
        status = getattr(getattr(error, "response", None), "status_code", None)
        hidden = status in (401, 403, 404) and not isinstance(error, RevisionNotFoundError | EntryNotFoundError)
        raise OSError(f"{asked}: {_reason(error)}{login if hidden else ''}") from error
    except RuntimeError as error:  # what the client makes of an upload that was cut off
        if not isinstance(error.__cause__, UNREACHED):
            raise
        raise OSError(
            f"{asked}: {_reason(error)} ({_reason(error.__cause__)}); nothing was committed, the same command tries "
            "again"
        ) from error


def _reason(error: BaseException) -> str:
    """The first lines of an error's text, in one."""
    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".") or type(error).__name__
