"""Downloads from a server that breaks off, corrupts and refuses; archives that mean harm."""

import hashlib
import io
import shutil
import tarfile
import threading
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dataset.prepare import download
from dataset.prepare.download import fetch, unpack
from dataset.prepare.layout import Archive

pytestmark = pytest.mark.fast

Room = namedtuple("Room", "free")
CONTENTS = bytes(range(256)) * 2000


class Server(ThreadingHTTPServer):
    """Serves `contents` under any name. cut: bytes after which each answer breaks off. ranges: whether it resumes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents, self.cut, self.ranges, self.status = CONTENTS, None, True, None
        self.asked: list[str | None] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def archive(self, name="a.zip", checksum=True, **where) -> Archive:
        md5 = "md5:" + hashlib.md5(CONTENTS).hexdigest()
        return Archive(f"http://127.0.0.1:{self.server_port}/{name}", md5 if checksum else None, **where)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server: Server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if server.status:
            return self.send_error(server.status)
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if begin >= len(server.contents):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.contents)}")
            return self.end_headers()
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(server.contents) - begin))
        self.end_headers()
        self.wfile.write(server.contents[begin:][: server.cut])
        if server.cut is not None:
            self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def part(root, name):
    """The unfinished file of a download."""
    (root / "downloads").mkdir(exist_ok=True)
    return root / "downloads" / f"{name}.part"


def test_a_connection_that_breaks_off_is_resumed(tmp_path, server):
    server.cut = 200_000
    path = fetch(server.archive(), tmp_path, quiet=True)
    assert path.read_bytes() == CONTENTS and server.asked == [None, "bytes=200000-", "bytes=400000-"]
    assert fetch(server.archive(), tmp_path, quiet=True) == path and len(server.asked) == 3, "it is there"


def test_a_download_goes_on_with_the_next_call(tmp_path, server, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    server.cut = 0
    part(tmp_path, "a.zip").write_bytes(CONTENTS[:300_000])
    with pytest.raises(OSError, match="goes on from 300,000 bytes"):
        fetch(server.archive(), tmp_path, quiet=True)
    server.cut = None
    assert fetch(server.archive(), tmp_path, quiet=True).read_bytes() == CONTENTS
    assert server.asked[-1] == "bytes=300000-" and not part(tmp_path, "a.zip").exists()


def test_a_full_disk_is_told_before_a_byte_is_fetched(tmp_path, server, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Room(511_000))
    with pytest.raises(OSError, match="downloads: a.zip needs 512,000 bytes, and 511,000 are free; make room"):
        fetch(server.archive(), tmp_path, quiet=True)
    assert len(server.asked) == 1 and not (tmp_path / "downloads/a.zip.part").exists()
    part(tmp_path, "a.zip").write_bytes(CONTENTS[:1000])
    assert fetch(server.archive(), tmp_path, quiet=True).read_bytes() == CONTENTS, "what is there needs no room"


def test_a_server_that_cannot_resume_begins_anew(tmp_path, server):
    server.ranges = False
    part(tmp_path, "a.zip").write_bytes(b"x" * 1000)
    assert fetch(server.archive(), tmp_path, quiet=True).read_bytes() == CONTENTS


def test_a_download_that_was_complete_is_taken(tmp_path, server):
    part(tmp_path, "a.zip").write_bytes(CONTENTS)
    assert fetch(server.archive(), tmp_path, quiet=True).read_bytes() == CONTENTS
    part(tmp_path, "b.zip").write_bytes(CONTENTS + b"more than there is")
    assert fetch(server.archive("b.zip"), tmp_path, quiet=True).read_bytes() == CONTENTS


def test_a_corrupt_file_is_removed_and_named(tmp_path, server):
    server.contents = CONTENTS[:-1] + b"!"
    with pytest.raises(ValueError, match="a.zip: the file has the MD5 .* is published; it has been removed"):
        fetch(server.archive(), tmp_path, quiet=True)
    assert not list(tmp_path.rglob("a.zip*"))
    server.contents = CONTENTS
    assert fetch(server.archive(), tmp_path, quiet=True).read_bytes() == CONTENTS


def test_a_refusal_is_told_at_once(tmp_path, server):
    server.status = 404
    with pytest.raises(OSError, match="a.zip: the server answers 404"):
        fetch(server.archive(), tmp_path, quiet=True)
    assert len(server.asked) == 1
    server.status = 503
    with pytest.raises(OSError, match="answers 503 .*; the same command goes on"):
        fetch(server.archive(), tmp_path, quiet=True)
    assert len(server.asked) == 1 + download.TRIES


def test_a_host_that_is_not_there_is_told_at_once(tmp_path, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="a.zip: cannot be reached"):
        fetch(server.archive(), tmp_path, quiet=True)


def make_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in files.items():
            archive.writestr(name, contents)
    return path


def make_tar(path, members):
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, kind, value in members:
            item = tarfile.TarInfo(name)
            item.type = kind
            if kind == tarfile.REGTYPE:
                item.size = len(value)
                archive.addfile(item, io.BytesIO(value))
            else:
                item.linkname = value
                archive.addfile(item)
    return path


def test_one_folder_of_an_archive_goes_where_it_should(tmp_path):
    files = {"top/a/1.png": b"one", "top/a/._1.png": b"mac", "__MACOSX/top/a/1.png": b"mac", "other/2.png": b"two"}
    path = make_zip(tmp_path / "x.zip", files)
    assert unpack(path, Archive("http://x/x.zip", folder="top", into="in"), tmp_path / "root", quiet=True) == 1
    assert [file.as_posix() for file in (tmp_path / "root").rglob("*.png")] == [
        f"{tmp_path.as_posix()}/root/in/a/1.png"
    ]
    assert unpack(path, Archive("http://x/x.zip", folder="top", into="in"), tmp_path / "root", quiet=True) == 0
    with pytest.raises(ValueError, match="holds no file below elsewhere"):
        unpack(path, Archive("http://x/x.zip", folder="elsewhere"), tmp_path / "root", quiet=True)


def test_unpacking_goes_on_where_it_stopped(tmp_path):
    path = make_zip(tmp_path / "x.zip", {"1.png": b"one", "2.png": b"two"})
    root = tmp_path / "root"
    root.mkdir()
    (root / "1.png").write_bytes(b"one")
    (root / "2.png").write_bytes(b"t")
    assert unpack(path, Archive("http://x/x.zip"), root, quiet=True) == 1 and (root / "2.png").read_bytes() == b"two"


@pytest.mark.parametrize("name", ["../out.png", "a/../../out.png", "/tmp/out.png", "C:/out.png", "..\\out.png"])
def test_nothing_is_written_outside_of_the_root(tmp_path, name):
    path = make_zip(tmp_path / "x.zip", {name: b"bad"})
    with pytest.raises(ValueError, match="leads outside of the folder"):
        unpack(path, Archive("http://x/x.zip"), tmp_path / "root", quiet=True)
    path = make_tar(tmp_path / "x.tgz", [(name, tarfile.REGTYPE, b"bad")])
    with pytest.raises(ValueError, match="leads outside of the folder"):
        unpack(path, Archive("http://x/x.tgz"), tmp_path / "root", quiet=True)
    assert not list(tmp_path.rglob("out.png"))


@pytest.mark.parametrize("kind, needed", [("zip", 30_000), ("tar", 30_000), ("tgz", None)])
def test_a_full_disk_is_told_before_anything_is_unpacked(tmp_path, monkeypatch, kind, needed):
    """Files that are there need none. A compressed TAR tells its own size."""
    path, root = tmp_path / f"x.{kind}", tmp_path / "root"
    names = [f"set/{name}.png" for name in "abc"]
    if kind == "zip":
        make_zip(path, dict.fromkeys(names, bytes(10_000)))
    else:
        make_tar(path, [(name, tarfile.REGTYPE, bytes(10_000)) for name in names])
    needed, archive = needed or path.stat().st_size, Archive(f"http://x/x.{kind}", folder="set")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Room(needed - 1))
    with pytest.raises(OSError, match=f"unpacking x.{kind} needs {needed:,} bytes, and {needed - 1:,} are free"):
        unpack(path, archive, root, quiet=True)
    assert not list(root.iterdir())
    (root / "a.png").write_bytes(bytes(10_000))
    assert unpack(path, archive, root, quiet=True) == 2


def test_links_and_devices_are_left_out(tmp_path):
    members = [
        ("link", tarfile.SYMTYPE, "/etc"),
        ("hard", tarfile.LNKTYPE, "/etc/passwd"),
        ("pipe", tarfile.FIFOTYPE, ""),
        ("link/x.png", tarfile.REGTYPE, b"fine"),
    ]
    path = make_tar(tmp_path / "x.tgz", members)
    assert unpack(path, Archive("http://x/x.tgz"), tmp_path / "root", quiet=True) == 1
    assert [file.name for file in (tmp_path / "root").rglob("*")] == ["link", "x.png"]
    assert not (tmp_path / "root/link").is_symlink()
    item = zipfile.ZipInfo("link")
    item.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(item, "/etc")
        archive.writestr("x.png", b"fine")
    assert unpack(tmp_path / "x.zip", Archive("http://x/x.zip"), tmp_path / "root2", quiet=True) == 1
    assert [file.name for file in (tmp_path / "root2").iterdir()] == ["x.png"]


def test_an_archive_that_swells_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_SMALL", 100_000)
    path = make_zip(tmp_path / "x.zip", {"a.png": bytes(10_000_000)})
    with pytest.raises(ValueError, match="unpacks to more than"):
        unpack(path, Archive("http://x/x.zip"), tmp_path / "root", quiet=True)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_a_damaged_archive_is_named(tmp_path, kind):
    noise = hashlib.sha512(b"x").digest() * 5000
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        make_zip(path, {"a.png": noise, "b.png": noise})
        data = bytearray(path.read_bytes())
        data[100] ^= 255
    else:
        make_tar(path, [("a.png", tarfile.REGTYPE, noise), ("b.png", tarfile.REGTYPE, noise)])
        data = path.read_bytes()[:-200]
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"x.{kind}: damaged"):
        unpack(path, Archive(f"http://x/x.{kind}"), tmp_path / "root", quiet=True)
    (tmp_path / "page.zip").write_text("<html>log in first</html>")
    with pytest.raises(ValueError, match="neither a ZIP nor a TAR file"):
        unpack(tmp_path / "page.zip", Archive("http://x/page.zip"), tmp_path / "root", quiet=True)
