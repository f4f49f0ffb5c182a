"""An HTTP server of a folder, which gives parts of files as object stores do, and fails where a test says so."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dataset.read import remote


class FileServer(ThreadingHTTPServer):
    """Serves `folder`. ranges: whether it gives parts. failures: statuses of the next answers to GET."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.ranges = folder, True
        self.failures: list[int] = []
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, range
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body: bool) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append((self.command, self.path, wanted))
        file = server.folder / self.path.lstrip("/")
        if body and server.failures:
            return self.send_error(server.failures.pop(0))
        if not file.is_file():
            return self.send_error(404)
        data, part = file.read_bytes(), None
        if wanted and server.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1 if last else None]
            if not part:
                return self.send_error(416)
        self.send_response(200 if part is None else 206)
        sent = data if part is None else part
        self.send_header("Content-Length", str(len(sent)))
        self.send_header("ETag", str(file.stat().st_mtime_ns))
        if part is not None:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.end_headers()
        if body:
            self.wfile.write(sent)


@contextmanager
def serving(folder: Path, monkeypatch) -> Iterator[FileServer]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0, 0.0))
    server = FileServer(folder)
    yield server
    server.shutdown()
    server.server_close()
