"""The modules import where a system lacks what POSIX has; conda's environments are used by the launchers."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dataset.prepare import lock
from dataset.read import DataError
from tests.conftest import make_experiment
from tests.paths import ROOT
from util import UserError, dist
from util.record.machine import environment
from util.score.window import widest

FOLDERS = ("model", "dataset", "util", "tool")
# What Windows has not, and what macOS has not of it (sigwaitinfo, sched_getaffinity).
HIDDEN_MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "syslog")
HIDDEN_SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGALRM", "sigwaitinfo", "pthread_sigmask")
HIDDEN_IN_OS = (
    "getuid",
    "geteuid",
    "fork",
    "statvfs",
    "sched_getaffinity",
    "uname",
    "mkfifo",
    "O_NOFOLLOW",
    "O_DIRECTORY",
)
HIDE = f"""
import importlib, json, os, signal, sys
packages, modules, commands = json.load(sys.stdin)
for name in packages:  # what they need of the system is their business
    try:
        importlib.import_module(name)
    except ImportError:
        continue  # an extra that is not installed
for name in {HIDDEN_MODULES}:
    sys.modules[name] = None  # an import of it fails
for name in {HIDDEN_SIGNALS}:
    delattr(signal, name)
for name in {HIDDEN_IN_OS}:
    delattr(os, name)
"""
IMPORT_ALL = f"""{HIDE}
for name in modules:
    importlib.import_module(name)
"""
RUN_ALL = f"""
import multiprocessing.resource_tracker, shutil
multiprocessing.resource_tracker.ensure_running()  # a process of POSIX alone
free = shutil.disk_usage(".")
{HIDE}
shutil.disk_usage = lambda path: free  # Python's own has another way on Windows
for module, *words in commands:
    assert not importlib.import_module(module).main(words), module
"""
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def modules() -> list[str]:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def packages() -> list[str]:
    """All modules of others that ours import, wherever in a file."""
    names = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
    return sorted(name for name in names if name.partition(".")[0] not in (*FOLDERS, *HIDDEN_MODULES))


def run_without(program: str, names: list[str], commands: list[list[str]]) -> None:
    """Run a program that takes away what other systems lack, and see it succeed."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([packages(), names, commands]),
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_module_imports_without_what_windows_and_macos_lack():
    run_without(IMPORT_ALL, modules(), [])


def test_a_run_goes_from_training_to_masks_without_what_windows_and_macos_lack(tmp_path, data):
    path = make_experiment(tmp_path, data, train={"epochs": 1})
    last = str(tmp_path / "run" / "model" / "last.pth")
    commands = [
        ["tool.train", "--config", str(path), "--exp", str(tmp_path / "run")],
        ["tool.test", "--config", str(path), "--exp", str(tmp_path / "run")],
        ["tool.predict", last, str(data / "image"), "--out", str(tmp_path / "predicted")],
        ["tool.export", last, "--to", "weights", "--out", str(tmp_path / "net.safetensors")],
    ]
    run_without(RUN_ALL, [], commands)
    assert (tmp_path / "run" / "result" / "val-whole" / "report.html").is_file()
    assert len(list((tmp_path / "predicted").glob("*.png"))) == len(list((data / "image").iterdir()))


@pytest.mark.fast
def test_a_system_without_file_locks_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with open(tmp_path / "lock", "w") as file, pytest.raises(DataError, match="file locks.*loader.packed"):
        lock.lock(file.fileno())


@pytest.mark.fast
@pytest.mark.parametrize(
    ("asked", "there", "processes", "expected"),
    [
        ("mps", False, "1", "finds no GPU of Apple"),
        ("cuda", True, "1", "DEVICE=cuda: it can be mps"),
        ("mps", True, "2", "one process, not 2"),
    ],
)
def test_an_apple_gpu_that_cannot_be_used_is_told(monkeypatch, asked, there, processes, expected):
    monkeypatch.setenv("DEVICE", asked)
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there)
    with pytest.raises(UserError, match=expected):
        dist.init()


@pytest.mark.fast
def test_an_apple_gpu_is_used_when_asked_for_alone(monkeypatch):
    """It has no float64, so what is computed widely elsewhere is float32 there."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.delenv("DEVICE", raising=False)
    monkeypatch.setenv("NGPU", "0")
    assert dist.init().type == "cpu"
    monkeypatch.setenv("DEVICE", "mps")
    assert dist.init() == torch.device("mps")
    assert (widest(torch.device("mps")), widest(torch.device("cuda"))) == (torch.float32, torch.float64)


@pytest.mark.fast
def test_a_system_without_git_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment(torch.device("cpu"))["commit"] is None


def active(folder: Path, answer: int) -> str:
    """An environment whose Python notes how it was called and says that it has the packages (0), or not (1)."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$@" | tr "\\n" " " >> "{folder}/calls"\n[ "$1" != -c ] || exit {answer}\n')
    python.chmod(0o755)
    return str(folder / "bin")


def run_env(tmp_path: Path, variables: dict[str, str], path: str, command: str) -> subprocess.CompletedProcess:
    script = f'cd "{tmp_path}" && . "{ROOT}/tool/env.sh" && {command} && echo "PYTHON=$PYTHON"'
    env = {"HOME": str(tmp_path), "PATH": f"{path}:{plain_tools(tmp_path)}", **variables}
    return subprocess.run(["/bin/sh", "-c", script], env=env, capture_output=True, text=True, timeout=60, check=False)


def plain_tools(tmp_path: Path) -> str:
    """A folder of the shell's tools and of a python3 that has no packages and makes environments with their Python."""
    folder = tmp_path / "tools"
    if not folder.is_dir():
        folder.mkdir()
        (folder / "tr").symlink_to("/usr/bin/tr")
        base = folder / "python3"
        base.write_text(
            '#!/bin/sh\n[ "$1" != -c ] || exit 1\n[ "$1 $2" = "-m venv" ] || exit 1\n'
            f'/bin/mkdir -p "$3/bin"; echo "$3" > {tmp_path}/made\n'
            'printf "#!/bin/sh\\nexit 0\\n" > "$3/bin/python"; /bin/chmod +x "$3/bin/python"\n'
        )
        base.chmod(0o755)
    return str(folder)


@pytest.mark.fast
@pytest.mark.parametrize("kind", ["venv", "conda"])
def test_an_active_environment_that_lacks_the_packages_gets_them(tmp_path, kind):
    """It is installed into, and no .venv appears beside it."""
    path = active(tmp_path / "env", answer=1)
    variables = {
        "venv": {"VIRTUAL_ENV": str(tmp_path / "env")},
        "conda": {"CONDA_PREFIX": str(tmp_path / "env"), "CONDA_DEFAULT_ENV": "seg"},
    }[kind]
    done = run_env(tmp_path, variables, path, 'install_env "" ""')
    assert "PYTHON=python\n" in done.stdout, done.stderr
    assert "-m pip install" in (tmp_path / "env" / "calls").read_text()
    assert not (tmp_path / "made").exists()


@pytest.mark.fast
def test_condas_base_is_left_alone(tmp_path):
    """The base environment holds conda itself and is active in every new shell of most installations."""
    path = active(tmp_path / "miniconda", answer=1)
    variables = {"CONDA_PREFIX": str(tmp_path / "miniconda"), "CONDA_DEFAULT_ENV": "base"}
    done = run_env(tmp_path, variables, path, 'install_env "" ""')
    assert "PYTHON=.venv/bin/python\n" in done.stdout, done.stderr
    assert "pip" not in (tmp_path / "miniconda" / "calls").read_text()


@pytest.mark.fast
def test_an_environment_with_the_packages_is_taken_as_it_is(tmp_path):
    path = active(tmp_path / "env", answer=0)
    done = run_env(tmp_path, {"CONDA_PREFIX": str(tmp_path / "env"), "CONDA_DEFAULT_ENV": "seg"}, path, "need_env")
    assert "PYTHON=python\n" in done.stdout, done.stderr
    assert "pip" not in (tmp_path / "env" / "calls").read_text()


def test_commands_import_no_slow_library_that_they_may_not_need():
    """Each of these takes as long to import as PyTorch itself, and the launcher starts a process a stage."""
    slow = ("timm", "torchvision", "torch._dynamo", "onnx", "onnxruntime", "openvino", "sklearn", "scipy")
    code = f"import sys, tool.launch, tool.train, tool.test; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
