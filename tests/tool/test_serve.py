"""The server: real sockets, real uploads, what it refuses, many at once, and its page in a browser."""

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

import model
from model import build_model
from tests.conftest import CLASSES, COLORS, failure
from tests.paths import ROOT
from tool import serve
from tool.predict import Segmenter
from util import checkpoint

uvicorn = pytest.importorskip("uvicorn", reason="pip install -e '.[serve]'")
pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setitem(model.MODELS, "toy", "tests.faults.toy.Toy")
    torch.manual_seed(0)
    network = build_model("toy", len(CLASSES))
    facts = {"classes": list(CLASSES), "colors": [list(color) for color in COLORS]}
    facts |= {"preprocessing": {"mean": [10.0] * 3, "std": [50.0] * 3, "channel_order": "rgb"}}
    checkpoint.save(tmp_path / "toy.pth", {"model": network.state_dict(), "spec": network.spec, **facts})
    return tmp_path / "toy.pth"


@pytest.fixture
def segmenter(weights):
    return Segmenter(weights)


@contextmanager
def served(segmenter, hosts=("*",), **limits):
    """A server on a free port of the loopback; its address."""
    app = serve.build_app(segmenter, serve.Limits(**limits), hosts)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


def encoded(seed=0, size=(48, 64), kind="PNG", mode="RGB") -> bytes:
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def post(address, content, field="image", path="/predict", **headers):
    """Status, headers and body of an upload."""
    edge = "----edge"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="{field}"; filename="a.png"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={edge}", **headers}
    request = urllib.request.Request(address + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def get(address):
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.headers, answer.read()


def ids(content):
    return np.array(Image.open(io.BytesIO(content)))


def test_the_answer_is_the_segmenters_mask(segmenter):
    content = encoded()
    expected = segmenter(Image.open(io.BytesIO(content))).mask
    with served(segmenter) as address:
        status, headers, png = post(address, content)
        assert status == 200 and headers["Content-Type"] == "image/png" and float(headers["X-Seconds"]) > 0
        assert np.array_equal(ids(png), expected)
        for asked in (
            {"path": "/predict?format=json"},
            {"Accept": "application/json"},
            {"Accept": "application/json, */*"},
        ):
            found = json.loads(post(address, content, **asked)[2])
            assert np.array_equal(ids(base64.b64decode(found["mask"])), expected)
            assert (found["height"], found["width"]) == (48, 64)
            assert [each["name"] for each in found["classes"]] == list(CLASSES)
            assert [each["pixels"] for each in found["classes"]] == [int((expected == i).sum()) for i in range(3)]
        facts = json.loads(get(address + "/facts")[1])
        assert [tuple(each["color"]) for each in facts["classes"]] == [tuple(color) for color in COLORS]
        described = json.loads(get(address + "/openapi.json")[1])["paths"]["/predict"]["post"]
        assert {"200", "408", "413", "415", "422", "429", "503"} <= set(described["responses"])
        schema = described["responses"]["200"]["content"]["application/json"]["schema"]
        assert set(schema["properties"]) == set(found) and set(found["classes"][0]) == set(
            schema["properties"]["classes"]["items"]["properties"]
        )
        assert json.loads(get(address + "/health")[1]) == {"status": "ok", "waiting": 0}


def test_two_hundred_at_once_each_get_their_own(segmenter):
    contents = [encoded(seed, (24 + seed % 3, 32)) for seed in range(10)]
    expected = [segmenter(Image.open(io.BytesIO(content))).mask for content in contents]
    with served(segmenter) as address, ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda index: post(address, contents[index % 10]), range(200)))
    assert {status for status, _, _ in answers} == {200}
    assert all(np.array_equal(ids(png), expected[index % 10]) for index, (_, _, png) in enumerate(answers))


def truncated_header() -> bytes:
    """A PNG whose header has 5 bytes: Pillow raises a ValueError."""
    header = b"IHDR" + bytes(5)
    return encoded()[:8] + (5).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")


def large_png() -> bytes:
    """A picture whose header says 30,000 x 30,000; its pixels are missing."""
    content = bytearray(encoded())
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "status", "told"),
    [
        (b"no picture", 415, "no picture"),
        (b"", 415, "no picture"),
        (encoded(kind="EPS"), 415, "no picture"),
        (encoded()[:200], 422, "cannot be read"),
        (truncated_header(), 415, "no picture"),
        (encoded(kind="TIFF", mode="I"), 422, "beyond 8 bits"),
        (large_png(), 413, "megapixels"),
        (encoded(size=(200, 300)), 413, "at most 0.05 megapixels"),
        (b"0" * 300_000, 413, "larger than 0.2 MB"),
    ],
    ids=["text", "empty", "program", "cut off", "header", "16 bits", "bomb", "pixels", "bytes"],
)
def test_a_bad_upload_is_refused_and_the_next_is_answered(content, status, told, segmenter):
    with served(segmenter, max_bytes=200_000, max_pixels=50_000) as address:
        got, _, body = post(address, content)
        assert got == status and told in json.loads(body)["detail"]
        assert "/tmp" not in body.decode()
        assert post(address, encoded())[0] == 200


def test_deep_values_are_brought_to_8_bits_once(weights):
    """As the network was trained: 1000 to 3000 are its whole range, and what is 8 bits then is not spread again."""
    state = checkpoint.load(weights)
    state["preprocessing"]["range"] = [1000, 3000]
    checkpoint.save(weights, state)
    deep = Segmenter(weights)
    values = np.random.default_rng(0).integers(1000, 3000, (24, 32), np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    small = np.rint((values - 1000.0) * (255 / 2000)).astype(np.uint8)
    expected = deep.predictor(torch.from_numpy(np.repeat(small[None], 3, 0))).numpy()
    with served(deep) as address:
        status, _, png = post(address, buffer.getvalue())
    assert status == 200 and np.array_equal(ids(png), expected) and len(np.unique(expected)) > 1


def test_a_damaged_orientation_is_as_good_as_none(segmenter):
    image, buffer = Image.open(io.BytesIO(encoded())), io.BytesIO()
    image.save(buffer, "JPEG", exif=b"Exif\0\0MM\0\xbc\0\0\0\x08")
    plain = io.BytesIO()
    image.save(plain, "JPEG")
    with served(segmenter) as address:
        answers = [post(address, each.getvalue()) for each in (buffer, plain)]
    assert [status for status, _, _ in answers] == [200, 200] and answers[0][2] == answers[1][2]


def test_a_body_without_a_length_is_counted(segmenter):
    with served(segmenter, max_bytes=100_000) as address:
        request = urllib.request.Request(
            address + "/predict",
            (b"0" * 50_000 for _ in range(20)),
            {"Content-Type": "multipart/form-data; boundary=x", "Transfer-Encoding": "chunked"},
        )
        with pytest.raises((urllib.error.HTTPError, urllib.error.URLError)) as error:
            urllib.request.urlopen(request, timeout=30)
        assert getattr(error.value, "code", 413) in (400, 413)
        assert post(address, encoded())[0] == 200


def test_the_reason_of_a_refusal_is_a_sentence(segmenter):
    """Not a list of what a validator found, whatever is wrong with the form."""
    form = {"Content-Type": "application/octet-stream"}
    with served(segmenter) as address:
        for status, told, asked in (
            (422, "field `image`", {"field": "picture"}),
            (422, "field `image`", form),
            (422, "format", {"path": "/predict?format=xml"}),
            (400, "boundary", {"Content-Type": "multipart/form-data"}),
        ):
            got, _, body = post(address, encoded(), **asked)
            assert got == status and told in json.loads(body)["detail"], asked


def test_an_upload_that_stands_still_is_ended(segmenter, monkeypatch):
    monkeypatch.setattr(serve, "SILENCE", 0.2)
    with served(segmenter) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as slow:
            slow.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            )
            assert b" 408 " in slow.recv(4096)
        assert post(address, encoded())[0] == 200


def test_an_upload_that_nobody_waits_for_is_not_predicted(segmenter, monkeypatch):
    go, seen, predicted = threading.Event(), [], serve._predicted

    def slowly(own, content, limits):
        seen.append(content)
        assert go.wait(30)
        return predicted(own, content, limits)

    monkeypatch.setattr(serve, "_predicted", slowly)
    contents = [encoded(seed) for seed in range(3)]
    with served(segmenter) as address, ThreadPoolExecutor(2) as pool:

        def until(number):
            while json.loads(get(address + "/health")[1])["waiting"] != number:
                pass

        first = pool.submit(post, address, contents[0])
        until(1)
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as gone:
            body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + contents[1]
            body += b"\r\n--x--\r\n"
            head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            gone.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + body)
            until(2)
        last = pool.submit(post, address, contents[2])
        until(3)
        go.set()
        assert first.result()[0] == last.result()[0] == 200
    assert seen == [contents[0], contents[2]]


@pytest.mark.fast
def test_the_pages_load_nothing_from_elsewhere(segmenter):
    with served(segmenter) as address:
        for path in ("/", "/docs"):
            headers, page = get(address + path)
            assert b"http" not in page and b"src=" not in page, path
            assert headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_past_the_rate_it_is_429(segmenter):
    with served(segmenter, rate=3) as address:
        answers = [post(address, encoded()) for _ in range(5)]
    assert [status for status, _, _ in answers] == [200, 200, 200, 429, 429]
    assert 1 <= int(answers[-1][1]["Retry-After"]) <= 60
    assert "more than 3 pictures a minute" in json.loads(answers[-1][2])["detail"]


@pytest.mark.fast
def test_the_rate_is_of_the_last_minute_and_of_one_address():
    guard = serve.Guard(None, serve.Limits(rate=2))
    assert [guard.seconds_to_wait("a", now) for now in (0, 10, 20)] == [0, 0, 40]
    assert guard.seconds_to_wait("b", 20) == 0
    assert guard.seconds_to_wait("a", 61) == 0
    assert guard.seconds_to_wait("c", 1000) == 0 and set(guard.asked) == {"c"}


def test_while_too_many_wait_it_is_429(segmenter, monkeypatch):
    go, predicted = threading.Event(), serve._predicted

    def slowly(*arguments):
        assert go.wait(30)
        return predicted(*arguments)

    monkeypatch.setattr(serve, "_predicted", slowly)
    with served(segmenter, queue=2) as address, ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(post, address, encoded()) for _ in range(6)]
        refused = [answer for answer in answers if answer.done()]
        while len(refused) < 4:
            refused = [answer for answer in answers if answer.done()]
        go.set()
        statuses = sorted(answer.result()[0] for answer in answers)
    assert statuses == [200, 200, 429, 429, 429, 429]


@pytest.mark.fast
def test_the_loopback_is_called_by_its_own_names(segmenter):
    assert serve.allowed_hosts("0.0.0.0") == ["*"] and serve.allowed_hosts("192.168.1.7") == ["*"]
    assert "localhost" in serve.allowed_hosts("127.0.0.1") and "*" not in serve.allowed_hosts("::1")
    with served(segmenter, serve.allowed_hosts("::1")) as address:
        assert post(address, encoded(), Host="[::1]:8000")[0] == 200
    with served(segmenter, serve.allowed_hosts("127.0.0.1")) as address:
        assert post(address, encoded())[0] == 200
        assert post(address, encoded(), Host="elsewhere.example")[0] == 400


def test_the_command_answers_until_it_is_interrupted(tmp_path, monkeypatch):
    own = "tests.faults.toy.Toy"
    monkeypatch.setitem(model.MODELS, own, own)
    network = build_model(own, len(CLASSES))
    checkpoint.save(tmp_path / "own.pth", {"model": network.state_dict(), "spec": network.spec})
    command = [sys.executable, "-m", "tool.serve", str(tmp_path / "own.pth"), "--port", "0", "--plugin", own]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        line = process.stdout.readline()
        try:
            address = line.partition("open ")[2].split("/ ;")[0]
            assert address.startswith("http://127.0.0.1:"), line
            assert json.loads(get(address + "/facts")[1])["network"] == own
            headers, page = get(address + "/")
            assert b"Drop a picture" in page and "default-src 'none'" in headers["Content-Security-Policy"]
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "Traceback" not in rest, rest


SLOW = """
import time
from tests.faults.toy import Toy

class Slow(Toy):
    def forward(self, *arguments, **options):
        time.sleep(600)
"""


def test_an_interrupt_does_not_wait_for_a_long_prediction(tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    own = "slow.Slow"
    monkeypatch.setitem(model.MODELS, own, own)
    network = build_model(own, len(CLASSES))
    checkpoint.save(tmp_path / "own.pth", {"model": network.state_dict(), "spec": network.spec})
    start = "import sys; from tool import serve; serve.GRACE = 0.2; serve.cli.command(lambda: serve.main(sys.argv[1:]))"
    command = [sys.executable, "-c", start]
    command += [str(tmp_path / "own.pth"), "--port", "0", "--plugin", own]
    places = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    with (
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | places
        ) as process,
        ThreadPoolExecutor(2) as pool,
    ):
        try:
            line = process.stdout.readline()
            address = line.partition("open ")[2].split("/ ;")[0]
            answers = [pool.submit(post, address, encoded()) for _ in range(2)]
            while json.loads(get(address + "/health")[1])["waiting"] < 2:
                pass
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=60)[0]
        assert [answer.result()[0] for answer in answers] == [503, 503]
    assert process.returncode == 0 and "given up" in rest and "Traceback" not in rest, line + rest


def test_mistakes_are_one_line(weights, capsys):
    assert "--rate 0" in failure(capsys, serve.main, [str(weights), "--rate", "0"])
    assert "--max-mb inf" in failure(capsys, serve.main, [str(weights), "--max-mb", "inf"])
    assert "--host is an address" in failure(capsys, serve.main, [str(weights), "--host", "203.0.113.7"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = failure(capsys, serve.main, [str(weights), "--port", str(port)])
    assert f"cannot listen on 127.0.0.1:{port}" in told and "another --port" in told


USE = """
<script>
addEventListener("load", async () => {
  const note = {}, until = async test => { while (!test()) await new Promise(go => setTimeout(go, 20)); };
  await until(() => facts);
  const file = new File([Uint8Array.from(atob("PICTURE"), c => c.charCodeAt(0))], "a.png", {type: "image/png"});
  const give = content => { const t = new DataTransfer(); t.items.add(content);
    at("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: t, bubbles: true, cancelable: true})); };
  give(file);
  await until(() => !at("results").hidden && at("status").textContent.includes(" s"));
  note.ids = [...ids]; note.size = [height, width]; note.status = at("status").textContent;
  const pixel = () => [...at("mask").getContext("2d").getImageData(0, 0, 1, 1).data];
  note.shown = pixel();
  note.wider = at("stage").getBoundingClientRect().width;
  boxes()[ids[0]].click();
  note.hidden = pixel();
  at("opacity").value = 20; at("opacity").dispatchEvent(new Event("input"));
  note.opacity = at("mask").style.opacity;
  const box = at("mask").getBoundingClientRect();
  at("drop").dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + 0.5, clientY: box.top + 0.5}));
  note.under = at("under").textContent;
  note.download = at("download").download;
  note.names = [...document.querySelectorAll("#classes span:not(.share)")].map(each => each.textContent);
  // The first of two uploads is answered late.
  const real = fetch; let calls = 0, released = false;
  window.fetch = async (address, options) => {
    const number = ++calls, answer = await real(address, {...options, signal: undefined});
    if (number === 1) await until(() => released);
    return answer;
  };
  give(new File([file], "late.png")); give(new File([file], "soon.png"));
  await until(() => at("status").textContent.startsWith("soon.png: 64"));
  released = true;
  await new Promise(go => setTimeout(go, 300));
  note.last = [at("status").textContent.split(":")[0], at("download").download];
  window.fetch = real;
  give(new File(["no picture"], "b.png"));
  await until(() => at("status").className === "error");
  note.error = at("status").textContent;
  note.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  const found = document.createElement("script");
  found.type = "application/json"; found.id = "found"; found.textContent = JSON.stringify(note);
  document.body.append(found);
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [500, 1280], ids=["narrow", "wide"])
def test_the_page_works_in_a_browser(segmenter, tmp_path, monkeypatch, width):
    content = encoded()
    expected = segmenter(Image.open(io.BytesIO(content))).mask
    page = serve.PAGE.read_text(encoding="utf-8")
    use = USE.replace("PICTURE", base64.b64encode(content).decode())
    (tmp_path / "page.html").write_text(page.replace("</body>", use + "</body>"), encoding="utf-8")
    monkeypatch.setattr(serve, "PAGE", tmp_path / "page.html")
    with served(segmenter) as address:
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000000", "--dump-dom", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout.split('id="found">')[1].split("</script>")[0])
    first = int(expected[0, 0])
    assert np.array_equal(np.reshape(found["ids"], found["size"]), expected)
    assert found["shown"] == [*COLORS[first], 255] and found["hidden"][3] == 0 and found["opacity"] == "0.2"
    assert found["under"] == CLASSES[first] and found["download"] == "a_classes.png"
    counts = np.bincount(expected.ravel(), minlength=len(CLASSES))
    assert found["names"] == [CLASSES[index] for index in np.argsort(-counts, kind="stable")]  # the largest first
    assert found["last"] == ["soon.png", "soon_classes.png"] and found["wider"] > 5 * 64
    assert "64 x 48 pixels in" in found["status"]
    assert "no picture" in found["error"] and not found["wide"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_the_page_of_the_api_describes_it(segmenter, tmp_path):
    with served(segmenter) as address:
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
        command += ["--virtual-time-budget=20000", "--dump-dom", address + "/docs"]
        page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "POST /predict" in page and f"curl -F image=@photo.jpg {address}/predict" in page
    assert ">429</code>" in page and "{width, height, seconds, classes, mask, encoding}" in page
