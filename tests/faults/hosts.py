"""Two hosts on one machine: network namespaces joined by a cable (veth), each with its own host name. Needs root."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.paths import ROOT

ADDRESS = "10.77.{net}.{host}"
LIMIT = 240.0  # seconds after which a run counts as hanging
TIMES = {"PEER_TIMEOUT": "8", "DIST_TIMEOUT": "60", "JOIN_TIMEOUT": "25", "STOP_TIMEOUT": "60"}
LAUNCH = (
    "import sys, tempfile; from util.dist import agent; from tool.shared import cli; "
    "cli.command(lambda: agent.launch(1, 'tool.train', sys.argv[1:], 3, tempfile.mkdtemp()))"
)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def possible() -> bool:
    """Whether this process may make namespaces."""
    if not shutil.which("ip") or not shutil.which("unshare") or os.geteuid() != 0:
        return False
    name = f"probe{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    ip("netns", "del", name)
    return True


class Hosts:
    """host-a and host-b, of which host-a holds the rendezvous; a context manager."""

    def __init__(self):
        self.key = os.getpid() % 200
        self.spaces = [f"{name}{self.key}" for name in ("a", "b")]
        self.port = 20000 + os.getpid() % 9000

    def __enter__(self):
        links = [f"v{space}" for space in self.spaces]
        for space in self.spaces:
            ip("netns", "add", space)
        ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for number, (space, link) in enumerate(zip(self.spaces, links, strict=True), 1):
            ip("link", "set", link, "netns", space)
            ip("-n", space, "addr", "add", ADDRESS.format(net=self.key, host=number) + "/24", "dev", link)
            ip("-n", space, "link", "set", link, "up")
            ip("-n", space, "link", "set", "lo", "up")
        return self

    def __exit__(self, *error):
        for space in self.spaces:
            ip("netns", "del", space)

    def cable(self, state: str) -> None:
        """Plugs the cable "up", or pulls it "down"."""
        ip("-n", self.spaces[1], "link", "set", f"v{self.spaces[1]}", state)

    def slow(self, megabits: int) -> None:
        """Lets no more than that through the cable in a second."""
        limit = ["tbf", "rate", f"{megabits}mbit", "burst", "256kb", "latency", "400ms"]
        for space in self.spaces:
            subprocess.run(
                ["ip", "netns", "exec", space, "tc", "qdisc", "add", "dev", f"v{space}", "root", *limit],
                check=True,
                capture_output=True,
            )

    def start(self, host: int, folder: Path, *command: str, **environment: str) -> "Launcher":
        """Starts a command on host 0 or 1 as a user does there."""
        env = {
            **os.environ,
            "PYTHON": sys.executable,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "NNODES": "2",
            "NODE_RANK": str(host),
            "RDZV_ENDPOINT": f"{ADDRESS.format(net=self.key, host=1)}:{self.port}",
            "PYTHONPATH": str(ROOT),
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "GLOO_SOCKET_IFNAME": f"v{self.spaces[host]}",  # the hosts' names have no address
            **TIMES,
            **environment,
        }
        name = f"host-{'ab'[host]}"
        inside = [
            "ip",
            "netns",
            "exec",
            self.spaces[host],
            "unshare",
            "--uts",
            "sh",
            "-c",
            f'hostname {name}; exec "$@"',
            "sh",
            *command,
        ]
        return Launcher(inside, env, folder / f"{name}.txt")


class Launcher:
    """A launcher on a host, with what it and its processes print."""

    def __init__(self, command: list[str], env: dict, output: Path):
        self.output = output
        with open(output, "a") as file:
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=file)

    def workers(self) -> list[psutil.Process]:
        """The training processes, without those of their loaders."""
        return [p for p in psutil.Process(self.process.pid).children() if "tool.train" in p.cmdline()]

    def everything(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def text(self) -> str:
        return self.output.read_text()

    def until(self, words: str) -> None:
        """Waits until `words` are printed."""
        end = time.monotonic() + LIMIT
        while words not in self.text():
            assert time.monotonic() < end and self.process.poll() is None, f"{words!r} does not come\n{self.text()}"
            time.sleep(0.02)

    def wait(self) -> int:
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            for process in self.everything():
                process.send_signal(signal.SIGKILL)
            raise AssertionError(f"it hangs\n{self.text()}") from None
