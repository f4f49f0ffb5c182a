"""Light, camera and canvas that scenes are painted with."""

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np

VERSION = 2  # of the drawing: a change that alters pictures must raise it, so that old caches are redrawn

CLASSES = (
    "sky",
    "building",
    "road",
    "lane marking",
    "pavement",
    "vegetation",
    "pole",
    "sign",
    "car",
    "person",
    "bicycle",
    "fence",
)
SKY, BUILDING, ROAD, MARKING, PAVEMENT, VEGETATION, POLE, SIGN, CAR, PERSON, BICYCLE, FENCE = range(12)
VOID = 255

SUPERSAMPLING = 2
NEAR = 1.0  # metres; nothing closer to the camera plane is drawn
FAR = 115.0  # metres; the street is furnished up to here, behind it stands the skyline
SUBPIXEL = 4  # fractional bits of OpenCV's coordinates
CIRCLE = [(math.cos(i * math.pi / 8), math.sin(i * math.pi / 8)) for i in range(16)]

Color = tuple[float, float, float]  # of a thing, RGB
Tone = tuple[int, int, int]  # of a thing as it is lit and seen
Rng = np.random.Generator


def pick(rng: Rng, options):
    """Return one of a sequence at random.

    Unlike Generator.choice it leaves tuples of unequal things alone.
    """
    return options[int(rng.integers(len(options)))]


def jitter(rng: Rng, color: Color, amount: float = 0.08, hue: float = 0.06) -> Color:
    """Return the colour, lighter or darker by about `amount`.

    Each channel is off by about 100 * `hue`.
    """
    gain = 1 + rng.normal(0, amount)
    r, g, b = (c * gain + rng.normal(0, 100 * hue) for c in color)
    return min(max(r, 0), 255), min(max(g, 0), 255), min(max(b, 0), 255)


def mix(a: Color, b: Color, share: float) -> Color:
    """Return a colour with `share` of b in a."""
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share


@functools.cache
def noise_tile(exponent: float, size: int = 256) -> np.ndarray:
    """Return periodic noise (size, size), spectrum 1/f^exponent.

    float32, mean 0, deviation 1; 0 grains, 2 clouds.
    """
    white = np.random.default_rng(size).standard_normal((size, size))
    fy, fx = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    frequency = np.maximum(np.hypot(fx, fy), 1 / size)
    tile = np.fft.ifft2(np.fft.fft2(white) / frequency**exponent).real
    return ((tile - tile.mean()) / tile.std()).astype(np.float32)


def sample_tile(exponent: float, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Read the repeated noise tile at (u, v).

    In tile pixels; OpenCV wants them to fit 16 bits.
    """
    return cv2.remap(noise_tile(exponent), u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


@dataclass(frozen=True)
class Light:
    """Weather and hour: lights the scene, veils the distance."""

    sun: tuple[float, float, float]  # unit vector towards the sun
    direct: Color  # factors on a surface that faces the sun, added to
    ambient: Color  # the factors on every surface
    zenith: Color
    low: Color  # the sky above the horizon; also the colour of the haze
    cloud: Color
    cover: float  # share of the sky under clouds, about
    visibility: float  # metres after which 1/e of the contrast is left
    lamps: bool  # windows and vehicles are lit

    def shade(self, normal: tuple[float, float, float] | None) -> Color:
        """Return factors on a surface's colour.

        Without a normal, those of a round thing.
        """
        if normal is None:
            facing = 0.5
        else:
            facing = max(0.0, normal[0] * self.sun[0] + normal[1] * self.sun[1] + normal[2] * self.sun[2])
        (ar, ag, ab), (dr, dg, db) = self.ambient, self.direct
        return ar + dr * facing, ag + dg * facing, ab + db * facing


def draw_light(rng: Rng) -> Light:
    kind = pick(rng, ("clear", "clear", "fair", "fair", "overcast", "overcast", "dusk", "mist"))
    azimuth = rng.uniform(-1.0, 1.0) + pick(rng, (0.0, math.pi))  # rather along the street, or all is shade
    elevation = math.radians(rng.uniform(10, 22) if kind == "dusk" else rng.uniform(32, 65))
    flat = math.cos(elevation)
    sun = (flat * math.sin(azimuth), math.sin(elevation), flat * math.cos(azimuth))
    if kind == "clear":
        look = ((0.84, 0.79, 0.68), (0.44, 0.48, 0.56), (58, 112, 190), (176, 208, 236), (250, 250, 252))
        cover, visibility = rng.uniform(0.0, 0.3), rng.uniform(300, 600)
    elif kind == "fair":
        look = ((0.66, 0.62, 0.54), (0.52, 0.55, 0.60), (96, 144, 204), (196, 214, 232), (246, 246, 248))
        cover, visibility = rng.uniform(0.35, 0.65), rng.uniform(250, 500)
    elif kind == "overcast":
        look = ((0.12, 0.12, 0.12), (0.78, 0.80, 0.82), (168, 176, 186), (206, 210, 214), (226, 228, 230))
        cover, visibility = rng.uniform(0.7, 1.0), rng.uniform(200, 400)
    elif kind == "dusk":
        look = ((0.80, 0.55, 0.32), (0.50, 0.48, 0.56), (74, 92, 150), (250, 190, 130), (236, 160, 130))
        cover, visibility = rng.uniform(0.1, 0.6), rng.uniform(220, 450)
    else:
        look = ((0.14, 0.13, 0.12), (0.74, 0.75, 0.77), (196, 202, 208), (216, 218, 220), (222, 224, 226))
        cover, visibility = rng.uniform(0.5, 0.9), rng.uniform(110, 160)
    direct, ambient, zenith, low, cloud = look
    upper, lower, white = (jitter(rng, color, 0.04, 0.03) for color in (zenith, low, cloud))
    return Light(sun, direct, ambient, upper, lower, white, cover, visibility, kind == "dusk")


class Camera:
    """A pinhole at height `eye` above flat ground.

    height, width: of the canvas, in pixels.
    """

    def __init__(self, rng: Rng, height: int, width: int):
        self.height, self.width = height, width
        self.focal = width * rng.uniform(0.75, 1.02)
        self.eye = rng.uniform(1.35, 2.3)
        self.cx = width * rng.uniform(0.40, 0.60)
        self.horizon = height * rng.uniform(0.40, 0.54)
        roll = math.radians(rng.normal(0, 0.8))
        self.cos, self.sin = math.cos(roll), math.sin(roll)

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 3) before the camera -> canvas pixels (..., 2)."""
        scale = self.focal / points[..., 2]
        x = scale * points[..., 0] + (self.cx - self.width / 2)
        y = scale * (self.eye - points[..., 1]) + (self.horizon - self.height / 2)
        pixels = np.empty(x.shape + (2,))
        pixels[..., 0] = x * self.cos - y * self.sin + self.width / 2
        pixels[..., 1] = x * self.sin + y * self.cos + self.height / 2
        return pixels

    def size(self, z: float) -> float:
        """Final picture's pixels per metre at depth z."""
        return self.focal / z / SUPERSAMPLING

    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each pixel's offsets from the principal point.

        To the right and below the horizon, roll undone.
        """
        x = np.arange(self.width, dtype=np.float32)[None] - np.float32(self.width / 2)
        y = np.arange(self.height, dtype=np.float32)[:, None] - np.float32(self.height / 2)
        cos, sin = np.float32(self.cos), np.float32(self.sin)
        right = x * cos + y * sin + np.float32(self.width / 2 - self.cx)
        below = y * cos - x * sin + np.float32(self.height / 2 - self.horizon)
        return right, below

    def sees(self, x: float, z: float, reach: float = 0.0) -> bool:
        """Tell whether some of a thing is between the picture's edges.

        It stands at (x, z), `reach` metres to both sides.
        """
        off_centre = abs(self.cx - self.width / 2 + self.focal * x / z)
        return z > NEAR and off_centre < self.width / 2 + self.focal * reach / z


class Canvas:
    """Picture, label and shadows, with the drawing primitives.

    Each of the camera's size. `label=None` leaves the label as it is: a detail upon a thing already drawn.
    """

    def __init__(self, camera: Camera, light: Light, rng: Rng):
        self.camera, self.light, self.rng = camera, light, rng
        self.image = np.zeros((camera.height, camera.width, 3), np.uint8)
        self.label = np.full((camera.height, camera.width), SKY, np.uint8)
        self.shadow = np.zeros((camera.height, camera.width), np.uint8)  # of the sun
        self.contact = np.zeros((camera.height, camera.width), np.uint8)  # of the sky, close under a thing

    def tone(self, color: Color, z: float, normal=None, glow: float = 0.0) -> Tone:
        """Return a surface's colour as the camera sees it.

        Lit (or glowing by itself), then veiled by the haze.
        """
        clear = math.exp(-z / self.light.visibility)
        (r, g, b), (fr, fg, fb), (hr, hg, hb) = color, self.light.shade(normal), self.light.low
        if glow:
            fr, fg, fb = fr + (1.1 - fr) * glow, fg + (1.1 - fg) * glow, fb + (1.1 - fb) * glow
        red = min(255.0, r * fr) * clear + hr * (1 - clear)
        green = min(255.0, g * fg) * clear + hg * (1 - clear)
        blue = min(255.0, b * fb) * clear + hb * (1 - clear)
        return int(min(255.0, red)), int(min(255.0, green)), int(min(255.0, blue))

    def fill(self, shapes: list[np.ndarray], tone: Tone | None, label: int | None) -> None:
        """Fill polygons (n, 2) in canvas pixels.

        Without a tone only the label is written.
        """
        shapes = [np.rint(shape * (1 << SUBPIXEL)).astype(np.int32) for shape in shapes]
        if tone is not None:
            cv2.fillPoly(self.image, shapes, tone, cv2.LINE_8, SUBPIXEL)
        if label is not None:
            cv2.fillPoly(self.label, shapes, label, cv2.LINE_8, SUBPIXEL)

    def line(self, points: np.ndarray, thickness: float, tone: Tone, label: int | None) -> None:
        """Draw a polyline (n, 2) with round ends, canvas pixels."""
        corners = [np.rint(points * (1 << SUBPIXEL)).astype(np.int32)]
        pixels = max(1, round(thickness))
        cv2.polylines(self.image, corners, False, tone, pixels, cv2.LINE_8, SUBPIXEL)
        if label is not None:
            cv2.polylines(self.label, corners, False, label, pixels, cv2.LINE_8, SUBPIXEL)

    def discs(self, centres: np.ndarray, radii: np.ndarray, tones: list[Tone], label: int) -> None:
        """Draw discs at (n, 2), each with radius and tone.

        In that order, canvas pixels.
        """
        high = (self.camera.width, self.camera.height)
        seen = np.all((centres > -radii[:, None]) & (centres < radii[:, None] + high), axis=1).tolist()
        centres = np.rint(centres * (1 << SUBPIXEL)).astype(int).tolist()
        radii = np.maximum(np.rint(radii * (1 << SUBPIXEL)), 1).astype(int).tolist()
        for centre, radius, tone, inside in zip(centres, radii, tones, seen, strict=True):
            if inside:
                cv2.circle(self.image, centre, radius, tone, cv2.FILLED, cv2.LINE_8, SUBPIXEL)
                cv2.circle(self.label, centre, radius, label, cv2.FILLED, cv2.LINE_8, SUBPIXEL)

    def glaze(self, shape: np.ndarray, tone: Tone, opacity: float, label: int) -> None:
        """Fill a polygon (n, 2) that the picture shows through.

        The label does not.
        """
        low = np.maximum(np.floor(shape.min(0)).astype(int), 0)
        high = np.minimum(np.ceil(shape.max(0)).astype(int) + 1, (self.camera.width, self.camera.height))
        if (high <= low).any():
            return
        corners = np.rint((shape - low) * (1 << SUBPIXEL)).astype(np.int32)
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        cv2.fillPoly(mask, [corners], 1, cv2.LINE_8, SUBPIXEL)
        inside = mask.astype(bool)
        window = self.image[low[1] : high[1], low[0] : high[0]]
        window[inside] = (window[inside] * (1 - opacity) + np.array(tone) * opacity).astype(np.uint8)
        self.label[low[1] : high[1], low[0] : high[0]][inside] = label

    def polygon(self, points, color: Color, label: int | None, normal=None, glow: float = 0.0) -> None:
        """Fill a flat polygon of world points (n, 3).

        It is cut off at the near plane.
        """
        points = clip_near(np.asarray(points, float))
        if len(points):
            shape = self.camera.project(points)
            if shape[:, 0].max() > 0 and shape[:, 0].min() < self.camera.width:
                z = float(points[:, 2].sum()) / len(points)
                self.fill([shape], self.tone(color, z, normal, glow), label)

    def polygons(self, points: np.ndarray, color: Color, label: int | None, normal=None, glow=0.0) -> None:
        """Fill polygons (m, n, 3) of one colour that do not overlap.

        Any that reach behind the near plane are left out.
        """
        points = points[(points[..., 2] > NEAR).all(axis=1)]
        if len(points):
            tone = self.tone(color, float(points[..., 2].mean()), normal, glow)
            self.fill(list(self.camera.project(points)), tone, label)

    def cast(self, points) -> None:
        """Cast the shadow of a convex body on the ground.

        points: its corners (n, 3); nothing if it is far.
        """
        points = np.asarray(points, float)
        if points[0, 2] > 70:
            return
        sx, sy, sz = self.light.sun
        flat = points[:, (0, 2)] - points[:, 1:2] * (sx / sy, sz / sy)
        self.stain(self.shadow, cv2.convexHull(flat.astype(np.float32))[:, 0])

    def stain(self, mask: np.ndarray, ground: np.ndarray) -> None:
        """Mark a polygon (n, 2) of ground points as shadow."""
        points = np.zeros((len(ground), 3))
        points[:, (0, 2)] = ground
        points = clip_near(points)
        if len(points):
            shape = np.rint(self.camera.project(points) * (1 << SUBPIXEL)).astype(np.int32)
            cv2.fillPoly(mask, [shape], 255, cv2.LINE_8, SUBPIXEL)

    def touch(self, x: float, z: float, wide: float, deep: float) -> None:
        """Darken the ground under a thing at (x, z).

        wide, deep: half axes in metres.
        """
        self.stain(self.contact, np.array([(x + wide * cos, z + deep * sin) for cos, sin in CIRCLE]))


def clip_near(points: np.ndarray) -> np.ndarray:
    """Return the part of a polygon (n, 3) with Z >= NEAR.

    Empty when there is none (Sutherland and Hodgman 1974).
    """
    inside = points[:, 2] >= NEAR
    if inside.all():
        return points
    kept = []
    for i in range(len(points)):
        a, b = points[i - 1], points[i]
        if inside[i - 1] != inside[i]:
            kept.append(a + (b - a) * ((NEAR - a[2]) / (b[2] - a[2])))
        if inside[i]:
            kept.append(b)
    return np.array(kept).reshape(-1, 3)


class Upright:
    """Drawing in metres on a plane that faces the camera.

    It stands at (x, z); points are (right of x, up).
    """

    def __init__(self, canvas: Canvas, x: float, z: float):
        camera = canvas.camera
        self.canvas, self.z, self.scale = canvas, z, camera.focal / z
        self.origin = camera.project(np.array((x, 0.0, z)))
        self.axes = self.scale * np.array(((camera.cos, camera.sin), (camera.sin, -camera.cos)))

    def pixels(self, points) -> np.ndarray:
        """Return canvas pixels (..., 2) of the plane's points."""
        points = np.asarray(points, float)
        return self.origin + points[..., :1] * self.axes[0] + points[..., 1:] * self.axes[1]

    def polygon(self, points, color: Color, label: int | None, normal=None, glow: float = 0.0) -> None:
        self.canvas.fill([self.pixels(points)], self.canvas.tone(color, self.z, normal, glow), label)

    def rect(self, x0, x1, y0, y1, color: Color, label: int | None, glow: float = 0.0) -> None:
        self.polygon([(x0, y0), (x0, y1), (x1, y1), (x1, y0)], color, label, None, glow)

    def stroke(self, points, width: float, color: Color, label: int | None, thinnest: float = 1.0) -> None:
        thickness = max(width * self.scale, thinnest)
        self.canvas.line(self.pixels(points), thickness, self.canvas.tone(color, self.z), label)

    def ellipse(self, centre, radii, color: Color, label: int | None, arc=(0.0, 2 * math.pi)) -> None:
        angle = np.linspace(arc[0], arc[1], 17)
        self.polygon(centre + np.stack((np.cos(angle), np.sin(angle)), axis=1) * radii, color, label)


class Thing:
    depth: float

    def shade(self, canvas: Canvas) -> None:
        """Mark its shadows on the ground; called before the ground is painted."""

    def paint(self, canvas: Canvas) -> None:
        raise NotImplementedError
