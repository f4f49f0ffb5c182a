"""A stand-in of the Hugging Face Hub on the loopback: repositories, commits, large files, and what it refuses.

It speaks the Hub's HTTP, so that the real client talks to it; https://huggingface.co/docs/hub/api describes the paths.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_stand_in"


class Hub(ThreadingHTTPServer):
    """repositories: name -> file -> content; private: those that only TOKEN may see; calls: method and path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}
        self.calls: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, name: str) -> str:
        """The commit of a repository's present content."""
        parts = [f"{path}:{hashlib.sha256(data).hexdigest()}" for path, data in sorted(self.repositories[name].items())]
        return hashlib.sha1("\n".join(parts).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, status: int, content: Any = b"", **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def allowed(self, name: str, write: bool = False) -> bool:
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if (write and not known) or (name in self.server.private and not known):
            self.answer(401, {"error": "Invalid username or password."}, X_Error_Code="RepoNotFound")
            return False
        return True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path).partition("?")[0]
        self.server.calls.append(f"{self.command} {path}")
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not found:
            self.answer(404, {"error": f"no such path {path}"})
            return
        name, revision, file = found.groups()
        files = self.server.repositories.get(name)
        if files is None:
            self.answer(404 if self.headers.get("Authorization") else 401, X_Error_Code="RepoNotFound")
        elif not self.allowed(name):
            return
        elif revision not in ("main", self.server.commit(name)):
            self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message=f"Invalid rev id: {revision}")
        elif file not in files:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=self.server.commit(name))
        else:
            data = files[file]
            tag = f'"{hashlib.sha256(data).hexdigest()}"'
            self.answer(200, data, ETag=tag, X_Repo_Commit=self.server.commit(name))

    def do_PUT(self) -> None:
        self.server.calls.append(f"PUT {self.path}")
        data = self.body()
        digest = hashlib.sha256(data).hexdigest()
        if self.path != f"/large/{digest}":
            self.answer(400)
            return
        self.server.large[digest] = data
        self.answer(200)

    def do_POST(self) -> None:
        path, body = unquote(self.path).partition("?")[0], self.body()
        self.server.calls.append(f"POST {path}")
        asked = json.loads(body) if body[:1] == b"{" and b"\n{" not in body else {}
        found = re.fullmatch(
            r"/(?:api/models/)?([^/]+/[^/]+?)(?:\.git/info/lfs/objects/batch|/(preupload|commit)/main)", path
        )
        if path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            name = f"{asked['organization']}/{asked['name']}"
            if not self.allowed(name, write=True):
                return
            status = 409 if name in self.server.repositories else 200
            self.server.repositories.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            self.answer(status, {"url": f"{self.server.address}/{name}", "id": name})
        elif not found:
            self.answer(404, {"error": f"no such path {path}"})
        elif self.allowed(found[1], write=True):
            getattr(self, f"_{found[2] or 'batch'}")(found[1], asked, body)

    def _preupload(self, name: str, asked: dict[str, Any], body: bytes) -> None:
        """Say which files are large: those that are no text."""
        modes = [
            {"path": file["path"], "uploadMode": "regular" if file["path"].endswith(".md") else "lfs"}
            | {"shouldIgnore": False, "oid": None}
            for file in asked["files"]
        ]
        self.answer(200, {"files": modes})

    def _batch(self, name: str, asked: dict[str, Any], body: bytes) -> None:
        objects = [
            {"oid": each["oid"], "size": each["size"]}
            | {"actions": {"upload": {"href": f"{self.server.address}/large/{each['oid']}", "header": {}}}}
            for each in asked["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, asked: dict[str, Any], body: bytes) -> None:
        files = self.server.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        oid = self.server.commit(name)
        self.answer(200, {"commitUrl": f"{self.server.address}/{name}/commit/{oid}", "commitOid": oid, "success": True})


@contextmanager
def serving() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
