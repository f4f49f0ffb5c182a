"""Serves a checkpoint as a page and a JSON API.

    python -m tool.serve exp/street/sfnet_mobile/model/last.pth
    curl -F image=@photo.jpg http://127.0.0.1:8000/predict -o classes.png

It answers this machine alone unless --host says otherwise: there is no password. /docs describes the API. A picture
beyond --max-mb or --max-megapixels is refused with 413, what is no picture with 415, one that cannot be read with 422,
and with 429 whoever asks more often than --rate, or while --queue pictures wait.
"""

import asyncio
import base64
import errno
import io
import math
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageOps

from dataset.base import distinct_palette
from dataset.read import DataError
from tool.shared import cli
from tool.shared.segmenter import Segmentation, Segmenter, add_arguments, from_arguments
from util import UserError
from util.record.log import log, open_log

try:
    import uvicorn
    from fastapi import FastAPI, File, HTTPException, Request, UploadFile
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, Response
    from starlette.middleware.trustedhost import TrustedHostMiddleware
except ModuleNotFoundError as error:  # an extra: told by `main`
    uvicorn, MISSING = None, error.name
else:
    MISSING = None

PAGE = Path(__file__).with_name("shared") / "serve.html"
API_PAGE = PAGE.with_name("serve_api.html")  # FastAPI's own loads its script from elsewhere
MINUTE = 60.0
SILENCE = 30.0  # seconds in which an upload goes on
GRACE = 5.0  # seconds that Ctrl-C leaves to the picture that is predicted
LOOK = 0.2  # seconds after which the server looks whether it is to end
GONE = 499  # status of an answer that nobody waits for
FRAME = 1 << 16  # bytes that a form adds to its picture, at most
# What the page may load: itself alone. The picture and its mask are blobs.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'"
)


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


TEXT, NUMBER, INTEGER = ({"type": kind} for kind in ("string", "number", "integer"))
CLASS = {"id": INTEGER, "name": TEXT, "color": {"type": "array", "items": INTEGER}, "pixels": INTEGER, "share": NUMBER}
ANSWER = _object(
    width=INTEGER,
    height=INTEGER,
    seconds=NUMBER,
    classes={"type": "array", "items": _object(**CLASS)},
    mask={"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"},
    encoding=TEXT,
)
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"image/png": {}, "application/json": {"schema": ANSWER}},
        "description": "class ids of the pixels, at the picture's size",
    },
    **{
        status: {"description": text, "content": {"application/json": {"schema": _object(detail=TEXT)}}}
        for status, text in (
            (408, f"an upload that stood still for {SILENCE:g} seconds"),
            (413, "too many bytes or pixels"),
            (415, "no picture"),
            (422, "no field `image`, or a picture that cannot be read"),
            (429, "too often, or too many wait; Retry-After says the seconds"),
            (503, "the server ends"),
        )
    },
}
# What is read of strangers. Pillow knows more, of which EPS is a program that it has Ghostscript run.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")
# What Pillow raises of damaged files, by their format.
DAMAGE = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, LookupError, TypeError, OverflowError, struct.error)


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask for.

    max_bytes: of an upload. max_pixels: of a picture. rate: pictures a minute from one address. queue: pictures that
    may wait, or be predicted, at a time.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    rate: int = 600
    queue: int = 256


class Guard:
    """Refuses early what is asked too often or is too long.

    ASGI middleware of POST /predict.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], limits: Limits):
        self.app, self.limits = app, limits
        self.asked: dict[str, deque[float]] = {}  # address -> times of the last minute

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        most = self.limits.max_bytes + FRAME
        wait = self.seconds_to_wait((scope.get("client") or ("",))[0], time.monotonic())
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if wait:
            text = f"more than {self.limits.rate} pictures a minute; try again in {wait} seconds"
            answer = JSONResponse({"detail": text}, 429, {"Retry-After": str(wait)})
        elif declared.isdigit() and int(declared) > most:
            answer = JSONResponse({"detail": self.too_large()}, 413)
        else:
            received, complete = 0, False

            async def counted() -> dict[str, Any]:  # a body without a declared length
                nonlocal received, complete
                try:
                    message = await asyncio.wait_for(receive(), None if complete else SILENCE)
                except asyncio.TimeoutError:
                    raise HTTPException(408, f"nothing came for {SILENCE:g} seconds") from None
                complete = not message.get("more_body", False)
                received += len(message.get("body", b""))
                if received > most:
                    raise HTTPException(413, self.too_large())
                return message

            await self.app(scope, counted, send)
            return
        await answer(scope, receive, send)

    def too_large(self) -> str:
        """Say how large an upload may be."""
        return f"the upload is larger than {self.limits.max_bytes / 1e6:g} MB"

    def seconds_to_wait(self, address: str, now: float) -> int:
        """Return how many seconds to wait; 0 notes the request."""
        for other in [key for key, times in self.asked.items() if times[-1] < now - MINUTE]:
            del self.asked[other]
        times = self.asked.setdefault(address, deque())
        while times and times[0] < now - MINUTE:
            times.popleft()
        if len(times) >= self.limits.rate:
            return max(1, round(times[0] + MINUTE - now))
        times.append(now)
        return 0


class Turns:
    """Predicts one picture after the other, first come, first served.

    A network is one, and uses every core by itself.
    """

    def __init__(self, queue: int):
        self.queue, self.waiting = queue, 0  # pictures that may wait, or be predicted, at a time; those that do
        self.ends: Callable[[], bool] = lambda: False  # whether the server is to end
        self._worker, self._turn = ThreadPoolExecutor(1, "predict"), asyncio.Lock()
        self._job: Future | None = None

    def busy(self) -> bool:
        """Tell whether a picture is being predicted."""
        return self._job is not None and not self._job.done()

    async def take(self, request: "Request", image: "UploadFile", *work: Any) -> "Response":
        """Call work[0] with the upload's content and the rest of `work`, when it is its turn.

        Raises:
            HTTPException: too many wait, or the server ends; or of the work.
        """
        if self.waiting >= self.queue:
            raise HTTPException(429, f"{self.waiting} pictures wait; try again in a moment", {"Retry-After": "1"})
        self.waiting += 1
        try:
            content = await image.read()
            async with self._turn:
                if await request.is_disconnected():  # nobody waits for it any more
                    return Response(status_code=GONE)
                if self.ends():
                    raise HTTPException(503, "the server ends")
                self._job = self._worker.submit(work[0], content, *work[1:])
                return await self._finished(asyncio.wrap_future(self._job))
        finally:
            self.waiting -= 1

    async def _finished(self, job: "asyncio.Future[Response]") -> "Response":
        while not self.ends():
            await asyncio.wait({job}, timeout=LOOK)
            if job.done():
                return job.result()
        await asyncio.wait({job}, timeout=GRACE)
        if not job.done():
            raise HTTPException(503, "the server ends")
        return job.result()


def in_a_sentence(request: "Request", error: Any) -> "JSONResponse":
    """Answer a form of the wrong fields; FastAPI would answer a list."""
    first = error.errors()[0]
    told = f"{first['loc'][-1]}: {first['msg']}"
    if first["loc"][:2] == ("body", "image"):
        told = "send the picture as a file in the field `image` of a multipart form"
    return JSONResponse({"detail": told}, 422)


def build_app(segmenter: Segmenter, limits: Limits, hosts: Sequence[str] = ("*",)) -> "FastAPI":
    """Build the application.

    hosts: names by which it may be called; "*" for any.
    """
    description = "One network, a picture at a time. The reason of a refusal stands in `detail`."
    app = FastAPI(title="Semantic segmentation", description=description, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, limits=limits)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_exception_handler(RequestValidationError, in_a_sentence)
    app.state.turns = turns = Turns(limits.queue)

    def shown(file: Path) -> HTMLResponse:
        return HTMLResponse(file.read_text(encoding="utf-8"), headers={"Content-Security-Policy": POLICY})

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> HTMLResponse:
        return shown(PAGE)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs() -> HTMLResponse:
        return shown(API_PAGE)

    @app.get("/health", response_description="`ok`, and the number")
    def health() -> dict[str, Any]:
        """Tell how many pictures wait, or are predicted."""
        return {"status": "ok", "waiting": turns.waiting}

    @app.get("/facts", response_description="network, data set, classes (id, name, color) and limits")
    def facts() -> dict[str, Any]:
        """Give the network, its classes with their colours, and the limits."""
        return {
            "network": segmenter.network,
            "dataset": segmenter.dataset,
            "classes": _classes(segmenter),
            "limits": vars(limits),
        }

    @app.post("/predict", response_class=Response, responses=RESPONSES)
    async def predict(
        request: Request,
        image: UploadFile = File(description="a picture: JPEG, PNG, TIFF, WebP, ..."),  # noqa: B008  # FastAPI's way
        format: Literal["png", "json"] | None = None,
    ) -> Response:
        """Predict the class of each pixel.

        Answers a PNG of class ids; JSON with shares and the PNG in base64 for `format=json`, or where `Accept` asks for
        `application/json`.
        """
        accepted = request.headers.get("accept", "")
        asks_json = "application/json" in accepted and "image/png" not in accepted
        wants_json = format == "json" or (format is None and asks_json)
        return await turns.take(request, image, _answered, segmenter, limits, wants_json)

    return app


def _answered(content: bytes, segmenter: Segmenter, limits: Limits, wants_json: bool) -> "Response":
    """Predict an upload and encode the answer, on the worker's thread."""
    start = time.perf_counter()
    result = _predicted(segmenter, content, limits)
    return _answer(result, round(time.perf_counter() - start, 4), wants_json)


def _predicted(segmenter: Segmenter, content: bytes, limits: Limits) -> Segmentation:
    """Decode and predict an upload.

    Raises:
        HTTPException: with the status of what is wrong with it.
    """
    if len(content) > limits.max_bytes:
        raise HTTPException(413, f"the picture is larger than {limits.max_bytes / 1e6:g} MB")
    try:
        Image.init()
        picture = Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f"the picture has more than {limits.max_pixels / 1e6:g} megapixels") from error
    except DAMAGE as error:
        raise HTTPException(415, "this is no picture that can be read; send JPEG, PNG, WebP, TIFF or BMP") from error
    if picture.width * picture.height > limits.max_pixels:
        size = f"{picture.width}x{picture.height}"
        raise HTTPException(413, f"the picture is {size}; at most {limits.max_pixels / 1e6:g} megapixels")
    try:
        picture = ImageOps.exif_transpose(picture)  # which decodes it
        picture.info.pop("exif", None)  # it may be damaged, and is not asked again
    except DAMAGE as error:
        raise HTTPException(422, f"the picture cannot be read: {error}") from error
    try:
        return segmenter(picture)
    except (UserError, DataError) as error:
        raise HTTPException(422, f"the picture cannot be read: {error}") from error
    except (RuntimeError, MemoryError) as error:
        if not cli.is_out_of_memory(error):
            raise
        size = f"{picture.width}x{picture.height}"
        raise HTTPException(413, f"there is too little memory for a picture of {size}") from error


def _answer(result: Segmentation, seconds: float, wants_json: bool) -> "Response":
    buffer = io.BytesIO()
    Image.fromarray(result.mask).save(buffer, "PNG")
    if not wants_json:
        return Response(buffer.getvalue(), media_type="image/png", headers={"X-Seconds": str(seconds)})
    classes = [
        each | {"pixels": int(count), "share": float(count / result.mask.size)}
        for each, count in zip(_classes(result.segmenter), result.counts(), strict=True)
    ]
    height, width = result.mask.shape
    mask = base64.b64encode(buffer.getvalue()).decode()
    found = {"width": width, "height": height, "seconds": seconds, "classes": classes}
    return JSONResponse(found | {"mask": mask, "encoding": "png;base64"})


def _classes(segmenter: Segmenter) -> list[dict[str, Any]]:
    colors = segmenter.colors if segmenter.colors is not None else distinct_palette(len(segmenter.classes))
    return [
        {"id": index, "name": name, "color": [int(value) for value in color]}
        for index, (name, color) in enumerate(zip(segmenter.classes, colors, strict=True))
    ]


def allowed_hosts(host: str) -> list[str]:
    """Return the names by which the server may be called.

    On the loopback only its own: no page elsewhere may reach it under a name that it has pointed here.
    """
    try:
        local = host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name
        local = False
    return ["localhost", "127.0.0.1", "[::1]", "[", host] if local else ["*"]  # Starlette cuts [::1]:8000 at its colon


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python -m tool.serve", description=__doc__, example="python -m tool.serve last.pth --port 8000"
    )
    add_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0: any that is free (default: 8000)")
    parser.add_argument("--max-mb", type=float, default=20, metavar="N", help="of an upload (default: 20)")
    parser.add_argument("--max-megapixels", type=float, default=50, metavar="N", help="of a picture (default: 50)")
    parser.add_argument(
        "--rate", type=int, default=600, metavar="N", help="pictures a minute an address (default: 600)"
    )
    parser.add_argument("--queue", type=int, default=256, metavar="N", help="pictures that may wait (default: 256)")
    args = parser.parse_args(argv)
    open_log(None)
    if MISSING is not None:
        raise UserError(f"tool.serve needs {MISSING}: python -m pip install -e '.[serve]'")
    for name in ("max_mb", "max_megapixels", "rate", "queue"):
        if not 0 < getattr(args, name) < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: a finite number above 0 is needed")
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port {args.port}: a port is 0 to 65535")
    segmenter = from_arguments(args)
    if segmenter.channels != 3:
        raise UserError(f"{args.checkpoint}: takes {segmenter.channels} channels, a page shows three; use tool.predict")
    # The limit is ours alone: a header is looked at before a pixel is read.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, round(args.max_megapixels * 1e6))
    limits = Limits(round(args.max_mb * 1e6), round(args.max_megapixels * 1e6), args.rate, args.queue)
    app = build_app(segmenter, limits, allowed_hosts(args.host))
    with _listening(args.host, args.port) as listener:
        port = listener.getsockname()[1]
        shown = f"[{args.host}]" if ":" in args.host else args.host
        log.info("%s (%s): open http://%s:%d/ ; Ctrl-C ends it", args.checkpoint, segmenter.network, shown, port)
        if allowed_hosts(args.host) == ["*"]:
            log.warning("--host %s: everybody who reaches this address may use it", args.host)
        try:
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
            app.state.turns.ends = lambda: server.should_exit
            server.run([listener])
        except KeyboardInterrupt:
            log.info("ended")
        if app.state.turns.busy():
            log.warning("the last picture was given up")
            os._exit(0)  # its thread cannot be stopped, and Python would wait for it
    return 0


def _listening(host: str, port: int) -> socket.socket:
    """Open the port.

    Raises:
        OSError: it is taken, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        known = error.errno in (errno.EADDRINUSE, errno.EACCES)
        remedy = "choose another --port" if known else "--host is an address of this machine"
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
        raise OSError(f"cannot listen on {host}:{port}: {reason}; {remedy}") from error


if __name__ == "__main__":
    cli.command(main, on_memory="use a smaller --tile or --max-megapixels")
