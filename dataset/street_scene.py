"""Procedurally drawn street scenes: a picture and its label, painted by the same calls.

A scene is planned in metres (X right, Y up, Z forward, the camera stands above the origin), seen through a
pinhole camera and painted from far to near. The ground is shaded pixel by pixel, all else is polygons,
strokes and discs; each goes into the picture and, with its class, into the label. Both are drawn at twice
the size asked for; the picture is then averaged, and the label sampled, so no class appears that was not
drawn. All random choices come from the one generator given.

From top to bottom: light, camera and canvas; sky and ground; the plan of the street; the things that stand in
it; furnishing the street with them; lens and sensor. Run as a script, it draws its share of a data set into a
folder (see `draw_share`).
"""

import functools
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

VERSION = 1  # of the drawing: a change that alters pictures must raise it, so that old caches are redrawn

CLASSES = (
    "sky", "building", "road", "lane marking", "pavement", "vegetation",
    "pole", "sign", "car", "person", "bicycle", "fence",
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


def draw_scene(rng: Rng, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene: picture (height, width, 3) uint8 RGB and label (height, width) uint8, indices into
    CLASSES or 255. The generator's state alone decides every byte. Raises ValueError below 32 x 32 pixels."""
    if height < 32 or width < 32:
        raise ValueError(f"a street scene needs at least 32 x 32 pixels, got {height} x {width}")
    light = draw_light(rng)
    camera = Camera(rng, height * SUPERSAMPLING, width * SUPERSAMPLING)
    canvas = Canvas(camera, light, rng)
    plan = Plan(rng)
    things = sorted(furnish(rng, plan, camera), key=lambda thing: -thing.depth)

    paint_sky(canvas)
    paint_skyline(canvas)
    for thing in things:
        thing.shade(canvas)
    paint_ground(canvas, plan)
    for thing in things:
        thing.paint(canvas)
    if rng.random() < 0.25:
        paint_bonnet(canvas)
    return develop(canvas)


# ----------------------------------------------------------------------------------------------------------
# light, camera, canvas


def pick(rng: Rng, options):
    """One of a sequence; unlike Generator.choice it leaves tuples of unequal things alone."""
    return options[int(rng.integers(len(options)))]


def jitter(rng: Rng, color: Color, amount: float = 0.08, hue: float = 0.06) -> Color:
    """The colour, lighter or darker by about the share `amount`, each channel off by about 100 * `hue`."""
    gain = 1 + rng.normal(0, amount)
    r, g, b = (c * gain + rng.normal(0, 100 * hue) for c in color)
    return min(max(r, 0), 255), min(max(g, 0), 255), min(max(b, 0), 255)


def mix(a: Color, b: Color, share: float) -> Color:
    """`share` of b in a."""
    return tuple(x + (y - x) * share for x, y in zip(a, b, strict=True))


@functools.cache
def noise_tile(exponent: float, size: int = 256) -> np.ndarray:
    """Periodic noise (size, size) float32, mean 0, deviation 1, spectrum 1/f^exponent: 0 grains, 2 clouds."""
    white = np.random.default_rng(size).standard_normal((size, size))
    fy, fx = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    frequency = np.maximum(np.hypot(fx, fy), 1 / size)
    tile = np.fft.ifft2(np.fft.fft2(white) / frequency**exponent).real
    return ((tile - tile.mean()) / tile.std()).astype(np.float32)


def sample_tile(exponent: float, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The repeated noise tile, read at (u, v) in tile pixels; OpenCV wants them to fit 16 bits."""
    return cv2.remap(noise_tile(exponent), u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


@dataclass(frozen=True)
class Light:
    """The weather and the hour: what lights the scene and veils what is far."""

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
        """Factors on the colour of a surface; without a normal, those of a round thing."""
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
    zenith, low, cloud = (jitter(rng, color, 0.04, 0.03) for color in (zenith, low, cloud))
    return Light(sun, direct, ambient, zenith, low, cloud, cover, visibility, kind == "dusk")


class Camera:
    """A pinhole at height `eye` above flat ground. height, width: of the canvas, in pixels."""

    def __init__(self, rng: Rng, height: int, width: int):
        self.height, self.width = height, width
        self.focal = width * rng.uniform(0.75, 1.02)
        self.eye = rng.uniform(1.35, 2.3)
        self.cx = width * rng.uniform(0.40, 0.60)
        self.horizon = height * rng.uniform(0.38, 0.54)
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
        """Of each canvas pixel, roll undone: pixels right of the principal point and below the horizon."""
        x = np.arange(self.width, dtype=np.float32)[None] - np.float32(self.width / 2)
        y = np.arange(self.height, dtype=np.float32)[:, None] - np.float32(self.height / 2)
        cos, sin = np.float32(self.cos), np.float32(self.sin)
        right = x * cos + y * sin + np.float32(self.width / 2 - self.cx)
        below = y * cos - x * sin + np.float32(self.height / 2 - self.horizon)
        return right, below

    def sees(self, x: float, z: float, reach: float = 0.0) -> bool:
        """Whether some of a thing at (x, z), `reach` metres to both sides, is between the picture's edges."""
        off_centre = abs(self.cx - self.width / 2 + self.focal * x / z)
        return z > NEAR and off_centre < self.width / 2 + self.focal * reach / z


class Canvas:
    """Picture, label and the shadows on the ground, each of the camera's size, with the drawing primitives.
    `label=None` leaves the label as it is: a detail upon a thing already drawn."""

    def __init__(self, camera: Camera, light: Light, rng: Rng):
        self.camera, self.light, self.rng = camera, light, rng
        self.image = np.zeros((camera.height, camera.width, 3), np.uint8)
        self.label = np.full((camera.height, camera.width), SKY, np.uint8)
        self.shadow = np.zeros((camera.height, camera.width), np.uint8)  # of the sun
        self.contact = np.zeros((camera.height, camera.width), np.uint8)  # of the sky, close under a thing

    def tone(self, color: Color, z: float, normal=None, glow: float = 0.0) -> Tone:
        """A surface's colour as the camera sees it: lit (or glowing by itself), then veiled by the haze."""
        clear = math.exp(-z / self.light.visibility)
        (r, g, b), (fr, fg, fb), (hr, hg, hb) = color, self.light.shade(normal), self.light.low
        if glow:
            fr, fg, fb = fr + (1.1 - fr) * glow, fg + (1.1 - fg) * glow, fb + (1.1 - fb) * glow
        red = min(255.0, r * fr) * clear + hr * (1 - clear)
        green = min(255.0, g * fg) * clear + hg * (1 - clear)
        blue = min(255.0, b * fb) * clear + hb * (1 - clear)
        return int(min(255.0, red)), int(min(255.0, green)), int(min(255.0, blue))

    def fill(self, shapes: list[np.ndarray], tone: Tone | None, label: int | None) -> None:
        """Polygons (n, 2) in canvas pixels; without a tone only the label is written."""
        shapes = [np.rint(shape * (1 << SUBPIXEL)).astype(np.int32) for shape in shapes]
        if tone is not None:
            cv2.fillPoly(self.image, shapes, tone, cv2.LINE_8, SUBPIXEL)
        if label is not None:
            cv2.fillPoly(self.label, shapes, label, cv2.LINE_8, SUBPIXEL)

    def line(self, points: np.ndarray, thickness: float, tone: Tone, label: int | None) -> None:
        """A polyline (n, 2) with round ends, canvas pixels."""
        points = [np.rint(points * (1 << SUBPIXEL)).astype(np.int32)]
        thickness = max(1, round(thickness))
        cv2.polylines(self.image, points, False, tone, thickness, cv2.LINE_8, SUBPIXEL)
        if label is not None:
            cv2.polylines(self.label, points, False, label, thickness, cv2.LINE_8, SUBPIXEL)

    def discs(self, centres: np.ndarray, radii: np.ndarray, tones: list[Tone], label: int) -> None:
        """Discs at (n, 2) canvas pixels, each with its radius (n,) and tone, in that order."""
        high = (self.camera.width, self.camera.height)
        seen = ((centres > -radii[:, None]) & (centres < radii[:, None] + high)).all(axis=1).tolist()
        centres = np.rint(centres * (1 << SUBPIXEL)).astype(int).tolist()
        radii = np.maximum(np.rint(radii * (1 << SUBPIXEL)), 1).astype(int).tolist()
        for centre, radius, tone, inside in zip(centres, radii, tones, seen, strict=True):
            if inside:
                cv2.circle(self.image, centre, radius, tone, cv2.FILLED, cv2.LINE_8, SUBPIXEL)
                cv2.circle(self.label, centre, radius, label, cv2.FILLED, cv2.LINE_8, SUBPIXEL)

    def glaze(self, shape: np.ndarray, tone: Tone, opacity: float, label: int) -> None:
        """A polygon (n, 2) through which the picture shows; its label does not."""
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
        """A flat polygon of world points (n, 3), cut off at the near plane."""
        points = clip_near(np.asarray(points, float))
        if len(points):
            shape = self.camera.project(points)
            if shape[:, 0].max() > 0 and shape[:, 0].min() < self.camera.width:
                z = float(points[:, 2].sum()) / len(points)
                self.fill([shape], self.tone(color, z, normal, glow), label)

    def polygons(self, points: np.ndarray, color: Color, label: int | None, normal=None, glow=0.0) -> None:
        """Several that do not overlap (m, n, 3), of one colour; any that reach behind the near plane are left
        out."""
        points = points[(points[..., 2] > NEAR).all(axis=1)]
        if len(points):
            tone = self.tone(color, float(points[..., 2].mean()), normal, glow)
            self.fill(list(self.camera.project(points)), tone, label)

    def cast(self, points) -> None:
        """The sun's shadow on the ground of the convex body with these corners (n, 3), unless it is far."""
        points = np.asarray(points, float)
        if points[0, 2] > 70:
            return
        sx, sy, sz = self.light.sun
        flat = points[:, (0, 2)] - points[:, 1:2] * (sx / sy, sz / sy)
        self.stain(self.shadow, cv2.convexHull(flat.astype(np.float32))[:, 0])

    def stain(self, mask: np.ndarray, ground: np.ndarray) -> None:
        """Mark a polygon (n, 2) of ground points (X, Z) in one of the two shadow masks."""
        points = np.zeros((len(ground), 3))
        points[:, (0, 2)] = ground
        points = clip_near(points)
        if len(points):
            shape = np.rint(self.camera.project(points) * (1 << SUBPIXEL)).astype(np.int32)
            cv2.fillPoly(mask, [shape], 255, cv2.LINE_8, SUBPIXEL)

    def touch(self, x: float, z: float, wide: float, deep: float) -> None:
        """The dark spot on the ground under a thing that stands at (x, z): half axes in metres."""
        self.stain(self.contact, np.array([(x + wide * cos, z + deep * sin) for cos, sin in CIRCLE]))


def clip_near(points: np.ndarray) -> np.ndarray:
    """The part of a polygon (n, 3) with Z >= NEAR; empty when there is none (Sutherland and Hodgman 1974)."""
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
    """Drawing in metres on an upright plane that faces the camera at (x, z); points are (right of x, up)."""

    def __init__(self, canvas: Canvas, x: float, z: float):
        camera = canvas.camera
        self.canvas, self.z, self.scale = canvas, z, camera.focal / z
        self.origin = camera.project(np.array((x, 0.0, z)))
        self.axes = self.scale * np.array(((camera.cos, camera.sin), (camera.sin, -camera.cos)))

    def pixels(self, points) -> np.ndarray:
        """Canvas pixels (..., 2) of points (..., 2) of the plane."""
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
        angle = np.linspace(*arc, 17)
        self.polygon(centre + np.stack((np.cos(angle), np.sin(angle)), axis=1) * radii, color, label)


# ----------------------------------------------------------------------------------------------------------
# sky, skyline, ground


def paint_sky(canvas: Canvas) -> None:
    light, camera, rng = canvas.light, canvas.camera, canvas.rng
    right, below = (offsets[::SUPERSAMPLING, ::SUPERSAMPLING] for offsets in camera.rays())
    rows = int((below < 0).any(axis=1).sum()) + 1  # the ground covers the others
    right, below = right[:rows], below[:rows]
    above = np.maximum(-below, 0) / np.float32(camera.focal)
    share = np.sqrt(np.minimum(above / np.float32(0.7), 1))[..., None]
    sky = np.float32(light.low) * (1 - share) + np.float32(light.zenith) * share

    # a layer of clouds: parallel to the ground, so it shrinks towards the horizon
    distance = np.float32(26) / (above + np.float32(0.12))
    u, v = (np.float32(start) for start in rng.uniform(0, 256, 2))
    u, v = right / np.float32(camera.focal) * distance + u, distance * np.float32(1.6) + v
    thickness = sample_tile(1.7, u, v) - np.float32(1.3 - 2.6 * light.cover)
    opacity = np.clip(thickness * np.float32(0.9), 0, 1) * np.clip(above * 9, np.float32(0.12), 1)
    relief = 1 + np.float32(0.07) * sample_tile(1.2, u + 3, v + 3) - np.float32(0.05) * opacity
    cloud = np.float32(light.cloud) * np.minimum(relief, np.float32(1.05))[..., None]
    sky += (cloud - sky) * (opacity * np.float32(0.9))[..., None]

    if light.sun[2] > 0.2 and light.cover < 0.7:
        x, y = (camera.focal * light.sun[0] / light.sun[2], -camera.focal * light.sun[1] / light.sun[2])
        reach = np.float32(0.16 * camera.width)
        glow = np.exp(-np.hypot(right - np.float32(x), below - np.float32(y)) / reach)
        sky += glow[..., None] * (np.float32((255, 246, 214)) - sky) * np.float32(0.8)
    sky = np.clip(sky, 0, 255).astype(np.uint8)
    rows = min(rows * SUPERSAMPLING, camera.height)
    canvas.image[:rows] = cv2.resize(sky, (camera.width, rows), interpolation=cv2.INTER_LINEAR)


def paint_skyline(canvas: Canvas) -> None:
    """Far houses and trees along the horizon, where the street and its side streets end."""
    rng = canvas.rng
    x, z = -230.0, 190.0
    while x < 230:
        width = rng.uniform(9, 26)
        if rng.random() < 0.62:
            top = rng.uniform(6, 17)
            wall = jitter(rng, pick(rng, WALLS), 0.1)
            outline = [(x, 0), (x, top), (x + width, top), (x + width, 0)]
            if rng.random() < 0.5:
                outline[2:2] = [(x + width / 2, top + rng.uniform(2, 4))]
            points = np.array([(px, py, z) for px, py in outline])
            canvas.polygon(points, wall, BUILDING, (0, 0, -1))
        else:
            points = np.stack((x + rng.uniform(0, width, 6), rng.uniform(1, 6, 6), np.full(6, z)), axis=1)
            radii = rng.uniform(2.5, 4.5, 6) * canvas.camera.focal / z
            tones = [canvas.tone(jitter(rng, (74, 98, 52)), z) for _ in range(6)]
            canvas.discs(canvas.camera.project(points), radii, tones, VEGETATION)
        x += width * rng.uniform(0.6, 1.0)


GROUND = (  # colour, class, grain: what the ground is made of
    ((96, 122, 58), VEGETATION, 0.20),
    ((166, 158, 148), PAVEMENT, 0.06),
    ((128, 121, 114), PAVEMENT, 0.06),
    ((186, 182, 174), PAVEMENT, 0.05),
    ((104, 103, 104), ROAD, 0.09),
    ((92, 91, 92), ROAD, 0.09),
    ((62, 58, 56), ROAD, 0.12),
    ((226, 226, 222), MARKING, 0.06),
    ((222, 178, 66), MARKING, 0.06),
)
LAWN, PAVING, JOINT, KERB, ASPHALT, PATCH, IRON, WHITE, YELLOW = range(len(GROUND))


def paint_ground(canvas: Canvas, plan: "Plan") -> None:
    """Everything below the horizon, pixel by pixel: what is the ground made of at the point seen there?"""
    camera, light, rng = canvas.camera, canvas.light, canvas.rng
    right, below = camera.rays()
    first = int(np.argmax((below > 0.5).any(axis=1)))
    right, below = right[first:], below[first:]
    under = below > 0.5
    z = np.float32(camera.focal * camera.eye) / np.maximum(below, np.float32(0.5))
    x = right * z * np.float32(1 / camera.focal)
    s = x - np.float32(plan.curve / 2) * z * z
    material = survey(plan, camera, s, z)

    color = [jitter(rng, color, 0.12 if kind == ROAD else 0.06, 0.02) for color, kind, _ in GROUND]
    color = np.float32(color)
    color[[JOINT, PATCH]] = color[[PAVING, ASPHALT]] * np.float32(((0.80,), (0.88,)))
    near, x = np.minimum(z, np.float32(200)), np.clip(x, np.float32(-1000), np.float32(1000))
    fine = sample_tile(0.3, x * 26, near * 26) * np.clip(14 / near, np.float32(0.15), 1)
    grain = np.float32([0.6 * grain for _, _, grain in GROUND])[material]
    grain *= fine + sample_tile(1.4, x * 9, near * 9)
    dark = cv2.GaussianBlur(canvas.contact, (0, 0), 2.2)[first:] * np.float32(-0.6 / 255) + 1
    lit = (255 - cv2.GaussianBlur(canvas.shadow, (0, 0), 1.2)[first:]) * np.float32(light.sun[1] / 255)
    clear = np.exp(z * np.float32(-1 / light.visibility))
    middle, lane = plan.tracks  # where the wheels run, the asphalt is polished
    wheels = np.cos((s - np.float32(middle)) * np.float32(4 * math.pi / lane)) * (material == ASPHALT)
    dark *= (1 + grain + np.float32(0.05) * wheels) * clear
    for channel in range(3):
        seen = lit * np.float32(light.direct[channel]) + np.float32(light.ambient[channel])
        seen *= color[:, channel][material]
        seen = np.minimum(seen * dark, 255 * clear) + np.float32(light.low[channel]) * (1 - clear)
        np.copyto(canvas.image[first:, :, channel], np.clip(seen, 0, 255).astype(np.uint8), where=under)
    np.copyto(canvas.label[first:], np.uint8([label for _, label, _ in GROUND])[material], where=under)


def wrap(values: np.ndarray, period: float) -> np.ndarray:
    """values modulo period; NumPy's own is many times slower on float32."""
    return values - np.floor(values * np.float32(1 / period)) * np.float32(period)


def survey(plan: "Plan", camera: Camera, s: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The material (indices into GROUND) of the ground points at places (s, z), see Plan."""
    on_right = s > 0
    beyond = np.maximum(s - np.float32(plan.right), np.float32(plan.left) - s)  # metres outside the road
    paved = (s < np.float32(plan.right + plan.pavement[1])) & (s > np.float32(plan.left - plan.pavement[0]))
    kerb, road = beyond < 0.28, beyond < 0
    if plan.crossing is not None:
        start, end = plan.crossing
        along = np.maximum(np.float32(start) - z, z - np.float32(end))  # metres outside the crossing street
        if plan.crossed != "both":
            along[on_right == (plan.crossed == "left")] = 99
        paved |= along < plan.corner
        kerb |= along < 0.28
        road |= along < 0
    material = np.where(paved, np.uint8(PAVING), np.where(on_right, plan.yard[1], plan.yard[0]))
    slabs = np.flatnonzero(paved & ~kerb & (z < plan.slab * 24))
    thin = np.maximum(np.float32(0.03), z.ravel()[slabs] * np.float32(1.2 / camera.focal))
    joint = (wrap(s.ravel()[slabs], plan.slab) < thin) | (wrap(z.ravel()[slabs], plan.slab) < thin * 1.5)
    material.ravel()[slabs[joint]] = JOINT
    material[kerb] = KERB
    material[road] = ASPHALT
    for left, right, start, end in plan.patches:
        material[road & (s > left) & (s < right) & (z > start) & (z < end)] = PATCH
    for s0, z0 in plan.manholes:
        distance = (s - np.float32(s0)) ** 2 + (z - np.float32(z0)) ** 2
        material[road & (distance < 0.47**2)] = PATCH
        material[road & (distance < 0.38**2)] = IRON
    mark_lanes(plan, camera, material, s, z)
    return material


def mark_lanes(plan: "Plan", camera: Camera, material: np.ndarray, s: np.ndarray, z: np.ndarray) -> None:
    """Paint lane lines, arrows, stop line and zebra crossing."""
    material, s, z = material.reshape(-1), s.reshape(-1), z.reshape(-1)
    for line in plan.lines:
        # a line ends where it, or its dashes, would be thinner than a pixel; lines far aside are seen aslant
        reach = camera.size(1.0) * line.width * camera.eye / math.hypot(camera.eye, line.s) / 1.2
        if line.dash:
            reach = min(reach, math.sqrt(camera.focal * camera.eye * line.dash / SUPERSAMPLING / 1.5))
        spots = np.flatnonzero((np.abs(s - np.float32(line.s)) < line.width / 2) & (z < reach))
        at = z[spots]
        paint = wrap(at + np.float32(line.phase), line.dash + line.gap) < line.dash if line.dash else at > 0
        for start, end in filter(None, (plan.crossing, plan.zebra)):
            paint &= (at < start - 0.6) | (at > end + 0.6)
        material[spots[paint]] = YELLOW if line.yellow else WHITE
    for s0, z0 in plan.arrows:  # straight ahead: a shaft of two metres, a head of one
        spots = np.flatnonzero((z > z0) & (z < z0 + 3.2))
        aside, ahead = np.abs(s[spots] - np.float32(s0)), z[spots] - np.float32(z0)
        material[spots[np.where(ahead < 2, aside < 0.1, aside < (3.2 - ahead) * np.float32(0.3))]] = WHITE
    if plan.zebra is not None:
        start, end = plan.zebra
        spots = np.flatnonzero((z > start) & (z < end) & (s > plan.left + 0.25) & (s < plan.right - 0.25))
        material[spots[wrap(s[spots] + np.float32(plan.stripe), 2 * plan.stripe) < plan.stripe]] = WHITE
        if plan.stop_line:
            near = (z > start - 1.6) & (z < start - 1.1)
            material[near & (s > plan.middle + 0.15) & (s < plan.right - plan.parking[1] - 0.2)] = WHITE


# ----------------------------------------------------------------------------------------------------------
# plan of the street


@dataclass(frozen=True)
class Line:
    """A painted line along the road at `s`; dash 0 is solid. Metres."""

    s: float
    width: float
    dash: float = 0.0
    gap: float = 0.0
    phase: float = 0.0
    yellow: bool = False


class Plan:
    """Where road, pavements and crossing lie. Places are (s, z): metres right of the camera's path, which
    bends with the road, and ahead. `side` is -1 for left, 1 for right. Pairs are (left, right)."""

    def __init__(self, rng: Rng):
        self.curve = rng.uniform(-0.0045, 0.0045) if rng.random() < 0.65 else 0.0
        lane = rng.uniform(2.9, 3.5)
        ahead, oncoming = int(rng.integers(1, 3)), int(rng.integers(1, 3))
        own = int(rng.integers(ahead))  # lanes between the camera's and the middle
        self.parking = tuple(2.2 if rng.random() < 0.45 else 0.0 for _ in range(2))
        self.middle = -(own + 0.5) * lane + rng.uniform(-0.3, 0.3)
        self.right = self.middle + ahead * lane + self.parking[1]
        self.left = self.middle - oncoming * lane - self.parking[0]
        self.lanes = [(self.middle + (i + 0.5) * lane, 1) for i in range(ahead)]
        self.lanes += [(self.middle - (i + 0.5) * lane, -1) for i in range(oncoming)]
        self.pavement = (rng.uniform(2.8, 4.8), rng.uniform(2.8, 4.8))
        self.slab = rng.uniform(0.5, 1.0)
        self.district = tuple(pick(rng, ("city", "houses", "houses", "park")) for _ in range(2))
        self.yard = tuple(np.uint8(PAVING if d == "city" else LAWN) for d in self.district)
        self.corner = rng.uniform(2.2, 3.5)  # width of the pavements along the crossing street

        self.crossing, self.crossed = None, pick(rng, ("both", "both", "left", "right"))
        if rng.random() < 0.5:
            start = rng.uniform(15, 42)
            self.crossing = (start, start + rng.uniform(6, 9))
        self.zebra = None
        if rng.random() < (0.75 if self.crossing else 0.35):
            end = self.crossing[0] - rng.uniform(0.6, 1.4) if self.crossing else rng.uniform(11, 26)
            self.zebra = (end - rng.uniform(2.6, 3.6), end)
        self.stripe = rng.uniform(0.45, 0.6)
        self.stop_line = rng.random() < 0.6
        self.lines = self._draw_lines(rng, lane, ahead, oncoming)
        self.patches = []
        for _ in range(int(rng.integers(0, 5))):
            s, z = rng.uniform(self.left, self.right), rng.uniform(4, 25)
            self.patches.append((s, s + rng.uniform(0.6, 2.4), z, z + rng.uniform(0.8, 7)))
        self.manholes = [(rng.uniform(self.left + 0.6, self.right - 0.6), rng.uniform(4, 20))
                         for _ in range(int(rng.integers(0, 4)))]
        self.arrows = []
        if ahead > 1 and rng.random() < 0.5:
            z = self.zebra[0] - rng.uniform(5, 7) if self.zebra else rng.uniform(6, 14)
            self.arrows = [(s, z) for s, direction in self.lanes if direction > 0 and z > 3]
        self.tracks = (self.middle, lane)

    def _draw_lines(self, rng: Rng, lane: float, ahead: int, oncoming: int) -> list[Line]:
        width = rng.uniform(0.18, 0.25)
        dash, phase = rng.uniform(2.5, 4), rng.uniform(0, 10)
        gap = dash * rng.uniform(1.0, 2.0)
        yellow = rng.random() < 0.25
        style = pick(rng, ("double", "solid", "dashed", "dashed"))
        lines = []
        if style == "double":
            lines += [Line(self.middle + offset, 0.16, yellow=yellow) for offset in (-0.18, 0.18)]
        else:
            dashes = (dash, gap, phase) if style == "dashed" else (0.0, 0.0, 0.0)
            lines.append(Line(self.middle, width, *dashes, yellow=yellow))
        between = [self.middle + i * lane for i in range(1 - oncoming, ahead) if i]
        lines += [Line(s, width, dash, gap, phase) for s in between]
        if rng.random() < 0.7:
            left = self.left + (self.parking[0] or 0.35)
            right = self.right - (self.parking[1] or 0.35)
            lines += [Line(left, width), Line(right, width)]
        return lines

    def at(self, s: float, z: float) -> np.ndarray:
        """The world point (3,) of a place."""
        return np.array((s + self.curve / 2 * z * z, 0.0, z))

    def beside(self, side: int, out: float) -> float:
        """s of a point `out` metres outside the road's edge."""
        return self.left - out if side < 0 else self.right + out

    def heading(self, z: float) -> float:
        """The road's direction at z, radians from straight ahead towards the right."""
        return math.atan(self.curve * z)

    def crosses(self, side: int, z: float, margin: float = 0.0) -> bool:
        """Whether the crossing street, with a margin, takes the side's pavement at z."""
        if self.crossing is None or self.crossed == ("left" if side > 0 else "right"):
            return False
        return self.crossing[0] - margin < z < self.crossing[1] + margin

    def stretches(self, side: int) -> list[tuple[float, float]]:
        """The runs of z along which plots lie on one side."""
        if self.crossing is None or not self.crosses(side, sum(self.crossing) / 2):
            return [(-4.0, FAR)]
        return [(-4.0, self.crossing[0] - self.corner), (self.crossing[1] + self.corner, FAR)]


# ----------------------------------------------------------------------------------------------------------
# things: each has a depth, by which they are painted from far to near, and can cast a shadow and be painted


class Thing:
    depth: float

    def shade(self, canvas: Canvas) -> None:
        """Mark its shadows on the ground; called before the ground is painted."""

    def paint(self, canvas: Canvas) -> None:
        raise NotImplementedError


WALLS = (
    (214, 196, 160), (226, 216, 196), (200, 168, 122), (196, 190, 182), (168, 162, 156), (176, 104, 80),
    (206, 172, 152), (222, 206, 140), (140, 128, 116), (188, 176, 168), (158, 120, 92), (150, 84, 66),
)
ROOFS = ((156, 82, 58), (132, 70, 54), (92, 88, 92), (112, 92, 80), (78, 80, 88), (170, 100, 72))
DOORS = ((92, 60, 42), (50, 70, 60), (110, 40, 38), (60, 64, 78))
TRIMS = ((236, 232, 224), (236, 232, 224), (96, 84, 76), (70, 70, 74))
SHOPS = ((60, 74, 66), (120, 40, 40), (52, 60, 88), (70, 58, 50), (176, 170, 160), (44, 44, 48))
AWNINGS = ((176, 52, 48), (48, 96, 74), (216, 206, 186), (56, 84, 140), (214, 150, 60))


class Wall:
    """An upright rectangle over the ground from `start` to `end` (3,); its points are (u along, v up)."""

    def __init__(self, start: np.ndarray, end: np.ndarray, height: float):
        self.start, self.height = start, height
        self.length = float(np.hypot(*(end - start)[[0, 2]]))
        self.along = (end - start) / self.length

    def points(self, u, v) -> np.ndarray:
        u, v = np.asarray(u, float), np.asarray(v, float)
        points = self.start + u[..., None] * self.along
        points[..., 1] += v
        return points

    def quad(self, u0: float, u1: float, v0: float, v1: float) -> np.ndarray:
        """The rectangle (4, 3) with these sides."""
        return self.points((u0, u0, u1, u1), (v0, v1, v1, v0))

    def quads(self, u0: np.ndarray, u1: np.ndarray, v0, v1) -> np.ndarray:
        """Rectangles (n, 4, 3) with these sides, arrays (n,) or numbers."""
        v = np.empty((len(u0), 4))
        v[:, 0] = v[:, 3] = v0
        v[:, 1] = v[:, 2] = v1
        return self.points(np.stack((u0, u0, u1, u1), axis=1), v)


class Building(Thing):
    """A house ("house") or a block of a city ("block") with its front along the street from z0 to z1 at s."""

    def __init__(self, rng: Rng, plan: Plan, side: int, s: float, z0: float, z1: float, kind: str, lag=0.0):
        self.depth = z1 + lag
        self.a, self.b = plan.at(s, z0), plan.at(s, z1)
        along = (self.b - self.a) / np.linalg.norm(self.b - self.a)
        self.out = np.array((along[2], 0, -along[0])) * side
        self.facing = tuple(-self.out)
        house = kind == "house"
        self.storey = rng.uniform(2.7, 3.1) if house else rng.uniform(2.9, 3.7)
        self.storeys = int(rng.integers(1, 3)) if house else int(rng.integers(2, 7))
        self.height = self.storey * self.storeys + rng.uniform(0.4, 0.9)
        self.deep = rng.uniform(7, 10) if house else rng.uniform(10, 16)
        self.roof = pick(rng, ("ridge", "ridge", "gable")) if house else pick(rng, ("flat", "flat", "ridge"))
        self.rise = self.deep / 2 * rng.uniform(0.6, 1.0) if house else rng.uniform(2, 4)
        self.wall, self.tiles = jitter(rng, pick(rng, WALLS), 0.06), jitter(rng, pick(rng, ROOFS), 0.06)
        self.trim = jitter(rng, pick(rng, TRIMS), 0.03)
        self.bay, self.window = rng.uniform(2.0, 3.6), (rng.uniform(0.9, 1.5), rng.uniform(1.2, 1.9))
        self.wide = not house and rng.random() < 0.15  # ribbon windows of an office
        self.shop = jitter(rng, pick(rng, SHOPS), 0.06) if not house and rng.random() < 0.55 else None
        self.awning = pick(rng, AWNINGS) if rng.random() < 0.5 else None
        self.balconies = not house and rng.random() < 0.25
        self.chimneys = rng.uniform(0.1, 0.9, int(rng.integers(0, 3)))

    def corner(self, u: float, back: float, height: float) -> np.ndarray:
        """World point: share u along the front, metres back from it and up."""
        return self.a + (self.b - self.a) * u + self.out * back + (0, height, 0)

    def shade(self, canvas: Canvas) -> None:
        top = self.height + (self.rise if self.roof != "flat" else 0)
        corners = [(u, back, y) for u in (0, 1) for back in (0, self.deep) for y in (0, self.height)]
        corners += [(0, self.deep / 2, top), (1, self.deep / 2, top)]
        canvas.cast([self.corner(*corner) for corner in corners])
        foot = [self.corner(u, back, 0) for u, back in ((0, -0.6), (1, -0.6), (1, 3), (0, 3))]
        canvas.stain(canvas.contact, np.array(foot)[:, (0, 2)])

    def paint(self, canvas: Canvas) -> None:
        ends = [p for p in (self.a, self.b, self.corner(0, self.deep, 0)) if p[2] > NEAR]
        if ends and not any(canvas.camera.sees(p[0], p[2], 1.0) for p in ends) and self.a[2] > NEAR:
            middles = [canvas.camera.focal * p[0] / p[2] + canvas.camera.cx for p in ends]
            if min(middles) > canvas.camera.width or max(middles) < 0:
                return
        self._paint_roof(canvas)
        if self.a[2] > NEAR:
            end = Wall(self.a, self.corner(0, self.deep, 0), self.height)
            gable = [self.corner(0, 0, self.height), self.corner(0, self.deep / 2, self.height + self.rise),
                     self.corner(0, self.deep, self.height)]
            normal = tuple(-(self.b - self.a) / np.linalg.norm(self.b - self.a))
            if self.roof == "ridge":
                canvas.polygon(gable, self.wall, BUILDING, normal)
            self._paint_facade(canvas, end, normal, street=False)
        if self.roof == "gable":
            gable = [self.corner(0, 0, self.height), self.corner(0.5, 0, self.height + self.rise),
                     self.corner(1, 0, self.height)]
            canvas.polygon(gable, self.wall, BUILDING, self.facing)
        self._paint_facade(canvas, Wall(self.a, self.b, self.height), self.facing, street=True)

    def _paint_roof(self, canvas: Canvas) -> None:
        if self.roof == "flat":
            return
        over = 0.35
        top, eave = self.height + self.rise, self.height - over * self.rise / (self.deep / 2)
        if self.roof == "ridge":
            for u in self.chimneys:
                base = self.corner(u, self.deep / 2 - 0.4, top - 1.0)
                brick = Wall(base, base + (self.b - self.a) * (0.7 / np.linalg.norm(self.b - self.a)), 2.0)
                canvas.polygon(brick.quad(0, 0.7, 0, 2.0), (132, 82, 66), BUILDING, self.facing)
            half = self.deep / 2
            slope = [(-0.02, -over, eave), (-0.02, half, top), (1.02, half, top), (1.02, -over, eave)]
            normal = tuple(v * 0.7 + w for v, w in zip(self.facing, (0, 0.7, 0), strict=True))
        else:
            eave = self.height - 0.1
            slope = [(-0.03, -over, eave), (0.5, -over, top), (0.5, self.deep, top), (-0.03, self.deep, eave)]
            normal = (0, 0.7, -0.7)
            far = [(1.03, -over, eave), (0.5, -over, top), (0.5, self.deep, top), (1.03, self.deep, eave)]
            canvas.polygon([self.corner(*p) for p in far], self.tiles, BUILDING, (0, 0.7, 0.7))
        corners = [self.corner(*p) for p in slope]
        canvas.polygon(corners, self.tiles, BUILDING, normal)
        if self.roof == "ridge":
            soffit = [corners[0], corners[3], self.corner(1, 0, self.height), self.corner(0, 0, self.height)]
            canvas.polygon(soffit, mix(self.trim, (60, 56, 54), 0.5), BUILDING, (0, -1, 0))
        if canvas.camera.size(max(corners[0][2], 4)) > 6:
            dark = mix(self.tiles, (30, 26, 26), 0.3)
            share = np.arange(0.1, 1.0, 0.12)[:, None]
            lower = corners[0] * (1 - share) + corners[1] * share
            upper = corners[3] * (1 - share) + corners[2] * share
            rise = np.array((0, 0.07, 0))
            canvas.polygons(np.stack((lower, upper, upper + rise, lower + rise), axis=1), dark, None, normal)

    def _paint_facade(self, canvas: Canvas, wall: Wall, normal, street: bool) -> None:
        length, height = wall.length, wall.height
        canvas.polygon(wall.quad(0, length, 0, height), self.wall, BUILDING, normal)
        ends = wall.points((0, wall.length), 0.0)
        ends[:, 2] = np.maximum(ends[:, 2], 2.0)
        left, right = canvas.camera.project(ends)[:, 0]
        size = abs(right - left) / wall.length / SUPERSAMPLING  # pixels per metre along the wall
        shop = self.shop if street else None
        if shop is None:
            canvas.polygon(wall.quad(0, length, 0, 0.55), mix(self.wall, (70, 66, 62), 0.45), None, normal)
        if self.roof == "flat":
            cornice = wall.quad(-0.15, length + 0.15, height - 0.45, height)
            canvas.polygon(cornice, self.trim, BUILDING, normal)
        under = wall.quad(0, length, height - 0.7, height - 0.45)
        canvas.polygon(under, mix(self.wall, (40, 38, 40), 0.35), None, normal)
        if self.bay * size > 3:
            self._paint_windows(canvas, wall, normal, size, first=0 if shop is None else 1, street=street)
        if shop is not None:
            self._paint_shop(canvas, wall, normal, size)

    def _paint_windows(self, canvas: Canvas, wall: Wall, normal, size: float, first: int, street: bool):
        """Rows of windows from storey `first` up and, on the street's side, a door in the ground floor."""
        rng = canvas.rng
        count = max(1, int((wall.length - 0.6) / self.bay))
        half = self.bay * 0.48 if self.wide else min(self.window[0], self.bay * 0.65) / 2
        u = np.tile((np.arange(count) + 0.5) * (wall.length / count), self.storeys - first)
        v = np.arange(first, self.storeys) * self.storey + (self.storey - self.window[1]) * 0.6
        v = np.repeat(v, count)
        if first == 0 and street:
            door = int(rng.integers(count))
            canvas.polygon(wall.quad(u[door] - 0.65, u[door] + 0.65, 0, 2.35), self.trim, None, normal)
            leaf = jitter(rng, pick(rng, DOORS), 0.08)
            canvas.polygon(wall.quad(u[door] - 0.5, u[door] + 0.5, 0, 2.2), leaf, None, normal)
            u, v = np.delete(u, door), np.delete(v, door)
        top = v + self.window[1]
        if size * half > 2:
            frame = wall.quads(u - half - 0.12, u + half + 0.12, v - 0.14, top + 0.12)
            canvas.polygons(frame, self.trim, None, normal)
        lit = 0.3 if canvas.light.lamps else 0.0  # share of the windows
        kinds = np.digitize(rng.random(len(u)), (lit, lit + 0.45, lit + 0.7))
        sky = mix((70, 80, 96), canvas.light.low, 0.5)
        panes = wall.quads(u - half, u + half, v, top)
        for kind, color in enumerate(((255, 214, 130), (52, 60, 70), (84, 98, 112), sky)):
            canvas.polygons(panes[kinds == kind], color, None, normal, 0.0 if kind else 0.9)
        if size * half > 3.5:
            canvas.polygons(wall.quads(u - 0.035, u + 0.035, v, top), self.trim, None, normal)
            bar = v + self.window[1] * 0.62
            canvas.polygons(wall.quads(u - half, u + half, bar, bar + 0.06), self.trim, None, normal)
        if self.balconies and street and size > 5:
            u, v = u[v > self.storey], v[v > self.storey]
            left, right = u - half * 1.6, u + half * 1.6
            canvas.polygons(wall.quads(left, right, v - 0.25, v + 0.75), (64, 64, 68), None, normal)
            canvas.polygons(wall.quads(left, right, v - 0.4, v - 0.2), self.trim, None, normal)

    def _paint_shop(self, canvas: Canvas, wall: Wall, normal, size: float) -> None:
        rng, high = canvas.rng, self.storey
        glow = 0.7 if canvas.light.lamps else 0.15
        canvas.polygon(wall.quad(0, wall.length, 0, high), self.shop, BUILDING, normal)
        count = max(1, int(wall.length / 4))
        edges = np.linspace(0.3, wall.length - 0.3, count + 1)
        panes = wall.quads(edges[:-1] + 0.12, edges[1:] - 0.12, 0.5, high - 0.8)
        inside = (236, 206, 150) if canvas.light.lamps else (92, 96, 100)
        canvas.polygons(panes, inside, None, normal, glow)
        if size > 4:
            goods = rng.uniform(0.2, 0.9, count)
            left = edges[:-1] + 0.3
            color = jitter(rng, (150, 110, 90), 0.2)
            canvas.polygons(wall.quads(left, left + goods, 0.5, 0.6 + goods), color, None, normal, glow)
        board = jitter(rng, pick(rng, AWNINGS), 0.1)
        canvas.polygon(wall.quad(0.2, wall.length - 0.2, high - 0.65, high - 0.15), board, None, normal)
        if self.awning is not None:
            ends = (0.3, wall.length - 0.3)
            near, far = wall.points(ends, high - 0.7)
            low_near, low_far = wall.points(ends, 2.3) - self.out
            canvas.polygon([near, far, low_far, low_near], self.awning, BUILDING, (0, 1, 0))


LEAVES = ((70, 104, 44), (86, 116, 50), (58, 92, 52), (96, 122, 62), (78, 96, 40))
AUTUMN = ((176, 124, 44), (164, 92, 40))


def paint_leaves(canvas: Canvas, centre: np.ndarray, radii, color: Color, z: float, leaf: float) -> None:
    """A leafy ellipse in canvas pixels: a dark body under tufts of radius `leaf`, lit from the sun's side."""
    rng, sun = canvas.rng, canvas.light.sun
    angle = rng.uniform(0, 2 * math.pi, 9)
    body = centre + 0.55 * np.stack((radii[0] * np.cos(angle), radii[1] * np.sin(angle)), axis=1)
    dark = canvas.tone(mix(color, (16, 26, 18), 0.55), z)
    canvas.discs(body, np.full(9, 0.5 * min(radii)), [dark] * 9, VEGETATION)

    count = int(2.2 * radii[0] * radii[1] / leaf**2 + 10)
    angle, reach = rng.uniform(0, 2 * math.pi, count), np.sqrt(rng.random(count))
    offset = np.stack((reach * np.cos(angle), reach * np.sin(angle)), axis=1)
    bright = 0.55 * (offset[:, 0] * sun[0] - offset[:, 1] * max(sun[1], 0.4)) + rng.normal(0, 0.22, count)
    order = np.argsort(bright, kind="stable")
    shade, shine = (20, 34, 20), (208, 214, 116)
    levels = ((shade, 0.45), (shade, 0.28), (shade, 0.1), (shine, 0.08), (shine, 0.2), (shine, 0.34))
    tones = [canvas.tone(mix(color, end, share), z) for end, share in levels]
    steps = np.digitize(bright[order], (-0.55, -0.25, 0.0, 0.25, 0.5)).tolist()
    sizes = leaf * rng.uniform(0.6, 1.3, count)
    canvas.discs(centre + offset[order] * radii, sizes, [tones[i] for i in steps], VEGETATION)


class Tree(Thing):
    """A tree or, without a trunk, a bush."""

    def __init__(self, rng: Rng, point: np.ndarray, kind: str, lag: float = 0.0):
        self.x, self.z, self.kind = float(point[0]), float(point[2]), kind
        self.depth = self.z + lag
        self.height = {"broad": rng.uniform(5, 9), "slim": rng.uniform(6, 10), "conifer": rng.uniform(5, 10),
                       "bush": rng.uniform(0.7, 1.6), "young": rng.uniform(3.4, 4.6)}[kind]
        spread = {"broad": 0.34, "slim": 0.17, "conifer": 0.22, "bush": 0.75, "young": 0.26}[kind]
        self.width = self.height * spread * rng.uniform(0.85, 1.15)
        self.bottom = 0.0 if kind == "bush" else self.height * rng.uniform(0.24, 0.36)
        if kind == "conifer":
            self.bottom = self.height * 0.1
        self.color = jitter(rng, pick(rng, AUTUMN if rng.random() < 0.08 else LEAVES), 0.07)
        if kind == "conifer":
            self.color = jitter(rng, (46, 78, 54), 0.06)
        self.bark = jitter(rng, pick(rng, ((94, 74, 56), (110, 92, 74), (80, 66, 54))), 0.06)

    def shade(self, canvas: Canvas) -> None:
        middle = (self.bottom + self.height) / 2
        ring = [(self.x + self.width * cos, middle, self.z + self.width * sin) for cos, sin in CIRCLE[::2]]
        canvas.cast([*ring, (self.x, self.bottom, self.z), (self.x, self.height * 0.97, self.z)])
        thick = 0.03 * self.height
        canvas.cast([(self.x + dx, y, self.z) for dx in (-thick, thick) for y in (0, middle)])

    def paint(self, canvas: Canvas) -> None:
        if not canvas.camera.sees(self.x, self.z, 1.3 * self.width):
            return
        up = Upright(canvas, self.x, self.z)
        if self.kind != "bush":
            thick, top = 0.028 * self.height, self.bottom + (self.height - self.bottom) * 0.4
            trunk = np.array([(-thick, 0), (-thick * 0.6, top), (thick * 0.6, top), (thick, 0)])
            up.polygon(trunk, self.bark, VEGETATION)
            if thick * up.scale > 2:
                lit = 0.5 * thick if canvas.light.sun[0] > 0 else -0.5 * thick
                up.polygon(trunk * (0.45, 1) + (lit, 0), mix(self.bark, (255, 240, 200), 0.15), None)
                dark = mix(self.bark, (0, 0, 0), 0.2)
                for tilt in (-0.5, 0.45):
                    up.stroke([(0, self.bottom), (tilt * self.width, top)], thick, dark, VEGETATION)
        if self.kind == "conifer":
            self._paint_tiers(canvas, up)
            return
        centre = up.pixels([0, (self.bottom + self.height) / 2])
        radii = (self.width * up.scale, (self.height - self.bottom) / 2 * up.scale)
        size = math.sqrt(radii[0] * radii[1])
        leaf = max(1.6, 0.09 * size, min(0.17 * size, 0.2 * up.scale))
        paint_leaves(canvas, centre, radii, self.color, self.z, leaf)

    def _paint_tiers(self, canvas: Canvas, up: Upright) -> None:
        tiers, rng = 7, canvas.rng
        for i in range(tiers):
            low = self.bottom + (self.height - self.bottom) * i / (tiers + 0.6)
            top = min(self.height, low + (self.height - self.bottom) / tiers * 2.1)
            half = self.width * (1 - 0.86 * i / tiers)
            edge = np.linspace(-half, half, 9)
            hem = low + rng.uniform(-0.12, 0.12, 9) * self.width + 0.18 * (half - np.abs(edge))
            outline = [*zip(edge, hem, strict=True), (0, top)]
            up.polygon(outline, mix(self.color, (10, 20, 16), 0.35), VEGETATION)
            lit = 1 if canvas.light.sun[0] > 0 else -1
            up.polygon([(0, low), (lit * half * 0.9, low + 0.05), (0, top)], self.color, None)


class Hedge(Thing):
    """A clipped hedge along the street from z0 to z1."""

    def __init__(self, rng: Rng, plan: Plan, s: float, z0: float, z1: float):
        self.start, self.end = plan.at(s, z0), plan.at(s, z1)
        self.depth = z1 + 2.0
        self.height, self.color = rng.uniform(0.8, 1.5), jitter(rng, pick(rng, LEAVES))

    def shade(self, canvas: Canvas) -> None:
        tops = [(dx, y, 0) for dx in (0, 0.6) for y in (0, self.height)]
        canvas.cast([end + top for end in (self.start, self.end) for top in tops])

    def paint(self, canvas: Canvas) -> None:
        wall = Wall(self.start, self.end, self.height)
        body = mix(self.color, (14, 24, 16), 0.4)
        canvas.polygon(wall.quad(0, wall.length, 0, self.height), body, VEGETATION)
        count = int(min(90, 14 * wall.length * self.height))
        u, v = canvas.rng.uniform(0, wall.length, count), canvas.rng.uniform(0.05, self.height + 0.08, count)
        points = wall.points(u, v)
        points = points[points[:, 2] > NEAR + 0.5]
        shades = [mix(self.color, (20, 34, 20), 0.35), self.color, mix(self.color, (206, 212, 110), 0.2)]
        high = np.digitize(points[:, 1] / self.height + canvas.rng.normal(0, 0.25, len(points)), (0.4, 0.85))
        tones = [canvas.tone(shades[i], z) for i, z in zip(high.tolist(), points[:, 2].tolist(), strict=True)]
        radii = np.maximum(1.5, 0.13 * canvas.camera.focal / points[:, 2])
        canvas.discs(canvas.camera.project(points), radii, tones, VEGETATION)


class Fence(Thing):
    """One panel of a fence between two places."""

    def __init__(self, start: np.ndarray, end: np.ndarray, kind: str, height: float, color: Color):
        self.wall = Wall(start, end, height)
        self.kind, self.color = kind, color
        self.depth = float(max(start[2], end[2]))
        self.normal = (-self.wall.along[2], 0.0, self.wall.along[0])
        if np.dot(self.normal, start) > 0:  # the face that is seen
            self.normal = tuple(-c for c in self.normal)

    def shade(self, canvas: Canvas) -> None:
        if self.kind == "boards":
            canvas.cast(self.wall.quad(0, self.wall.length, 0, self.wall.height))

    def paint(self, canvas: Canvas) -> None:
        wall, height = self.wall, self.wall.height
        whole = clip_near(wall.quad(0, wall.length, 0.06, height))
        if not len(whole):
            return
        shape = canvas.camera.project(whole)
        z = float(whole[:, 2].mean())
        step = {"boards": 0.22, "pickets": 0.17, "bars": 0.16}[self.kind]
        fine = step * canvas.camera.size(z) < 1.4  # too far to tell the slats apart
        cover = {"boards": 1.0, "pickets": 0.85, "bars": 0.8}[self.kind]
        if self.kind == "boards":
            canvas.polygon(whole, self.color, FENCE, self.normal)
        else:
            canvas.glaze(shape, canvas.tone(self.color, z, self.normal), cover if fine else 0.45, FENCE)
        u = np.arange(step / 2, wall.length, step)
        if not fine and self.kind == "boards":
            gaps = mix(self.color, (24, 20, 18), 0.55)
            canvas.polygons(wall.quads(u - 0.025, u + 0.025, 0.06, height), gaps, None, self.normal)
        elif not fine:
            thick = {"pickets": 0.06, "bars": 0.045}[self.kind]
            canvas.polygons(wall.quads(u - thick, u + thick, 0.06, height), self.color, FENCE, self.normal)
        rails = (0.25, 0.8) if self.kind == "pickets" else (0.08, 0.96)
        for share in rails if self.kind != "boards" else (0.97,):
            rail = wall.quad(0, wall.length, height * share - 0.06, height * share + 0.06)
            canvas.polygon(rail, mix(self.color, (255, 255, 255), 0.12), FENCE, self.normal)
        post = wall.quad(-0.06, 0.06, 0, height + 0.1)
        canvas.polygon(post, mix(self.color, (30, 28, 28), 0.25), FENCE, self.normal)


class Pole(Thing):
    """A lamp post ("arm", "lantern"), a utility pole ("wood") or a bollard."""

    SIZES = {"arm": (5.5, 7.5, 0.15), "lantern": (3.0, 4.2, 0.14), "wood": (6.5, 8.5, 0.18),
             "bollard": (0.9, 1.1, 0.15)}  # lowest, highest, radius
    STEEL = ((132, 136, 140), (112, 116, 120), (92, 97, 102), (80, 94, 96))

    def __init__(self, rng: Rng, point: np.ndarray, side: int, kind: str):
        self.x, self.z, self.side, self.kind = float(point[0]), float(point[2]), side, kind
        self.depth = self.z
        low, high, radius = self.SIZES[kind]
        self.height, self.radius = rng.uniform(low, high), radius * rng.uniform(0.9, 1.2)
        self.color = jitter(rng, (112, 88, 64) if kind == "wood" else pick(rng, self.STEEL), 0.05)
        self.banded = kind == "bollard" and rng.random() < 0.5

    def shade(self, canvas: Canvas) -> None:
        r = self.radius
        canvas.cast([(self.x + dx, y, self.z) for dx in (-r, r) for y in (0, self.height)])
        canvas.touch(self.x, self.z, 2.5 * r, 2.5 * r)

    def paint(self, canvas: Canvas) -> None:
        if not canvas.camera.sees(self.x, self.z, 2.0):
            return
        up = Upright(canvas, self.x, self.z)
        h, pixel = self.height, SUPERSAMPLING / up.scale
        foot, top = max(self.radius, 1.3 * pixel), max(self.radius * 0.75, 1.1 * pixel)
        up.polygon([(-foot, 0), (-top, h), (top, h), (foot, 0)], self.color, POLE)
        lit = 0.8 if canvas.light.sun[0] > 0 else -0.8
        bright = mix(self.color, (255, 250, 235), 0.25)
        up.polygon([(0, 0), (0, h), (lit * top, h), (lit * foot, 0)], bright, None)
        if self.kind == "bollard":
            if self.banded:
                up.rect(-foot, foot, h * 0.7, h * 0.85, (226, 226, 226), None)
            return
        up.rect(-foot * 1.5, foot * 1.5, 0, 0.5, self.color, POLE)
        if self.kind == "wood":
            for down in (0.4, 1.0):
                up.stroke([(-0.9, h - down), (0.9, h - down)], 0.14, self.color, POLE, 2)
        else:
            self._paint_lamp(up, top)

    def _paint_lamp(self, up: Upright, top: float) -> None:
        bulb, glow = ((255, 226, 160), 1.0) if up.canvas.light.lamps else ((214, 214, 206), 0.0)
        h = self.height
        if self.kind == "lantern":
            up.polygon([(-0.14, h), (-0.22, h + 0.5), (0.22, h + 0.5), (0.14, h)], bulb, POLE, None, glow)
            up.polygon([(-0.28, h + 0.5), (0, h + 0.75), (0.28, h + 0.5)], self.color, POLE)
            return
        x = -self.side * 1.5  # the head hangs over the road
        up.stroke([(0, h), (x * 0.4, h + 0.35), (x, h + 0.4)], top * 1.8, self.color, POLE, 2)
        up.rect(x - 0.33, x + 0.33, h + 0.3, h + 0.52, self.color, POLE)
        up.rect(x - 0.28, x + 0.28, h + 0.2, h + 0.3, bulb, POLE, glow)


class Sign(Thing):
    """One or two traffic signs on a post, turned to the camera."""

    KINDS = ("ban", "limit", "order", "warning", "yield", "stop", "diamond", "parking", "zebra", "direction")
    PANELS = ((30, 84, 160), (30, 110, 70), (236, 236, 230), (226, 184, 40))
    WHITE, RED, BLUE, BLACK = (240, 240, 236), (200, 32, 36), (28, 84, 170), (26, 26, 28)

    def __init__(self, rng: Rng, point: np.ndarray):
        self.x, self.z = float(point[0]), float(point[2])
        self.depth = self.z
        self.plates = [pick(rng, self.KINDS)]
        if self.plates[0] != "direction" and rng.random() < 0.3:
            self.plates.append(pick(rng, self.KINDS[:-1]))
        self.size = rng.uniform(0.44, 0.58)  # half a plate, metres
        self.middle = rng.uniform(2.3, 2.7)
        self.color = jitter(rng, (132, 136, 140), 0.05)
        self.panel = pick(rng, self.PANELS)
        self.text = rng.uniform(0, 1.2, 2)  # where the lines of a direction sign end

    def shade(self, canvas: Canvas) -> None:
        top, low = self.middle + self.size, self.middle - self.size
        canvas.cast([(self.x + dx, y, self.z) for dx in (-0.05, 0.05) for y in (0, top)])
        canvas.cast([(self.x + dx, y, self.z) for dx in (-self.size, self.size) for y in (low, top)])
        canvas.touch(self.x, self.z, 0.2, 0.2)

    def paint(self, canvas: Canvas) -> None:
        if not canvas.camera.sees(self.x, self.z, 1.0):
            return
        up = Upright(canvas, self.x, self.z)
        half = max(0.09, 1.0 * SUPERSAMPLING / up.scale)
        top = self.middle + self.size * 0.8
        up.rect(-half, half, 0, top, self.color, POLE)
        up.rect(0, half * 0.7, 0, top, mix(self.color, (255, 255, 255), 0.2), None)
        for i, plate in enumerate(self.plates):
            self._paint_plate(up, plate, self.middle - 2.1 * self.size * i)

    def _paint_plate(self, up: Upright, plate: str, y: float) -> None:
        """A plate with its middle at height y; shapes are given in halves of its size."""

        def shape(points, color: Color, label: int | None = SIGN) -> None:
            up.polygon(np.array(points) * self.size + (0, y), color, label)

        def stroke(points, color: Color, width: float = 0.2) -> None:
            up.stroke(np.array(points) * self.size + (0, y), width * self.size, color, None)

        if plate in ("ban", "limit", "order"):
            shape(CIRCLE, self.BLUE if plate == "order" else self.RED)
            if plate != "order":
                shape(np.array(CIRCLE) * 0.7, self.WHITE, None)
            if plate == "limit":
                for x in (-0.22, 0.2):
                    stroke([(x, -0.3), (x, 0.3)], self.BLACK)
            elif plate == "ban":
                stroke([(-0.42, 0), (0.42, 0)], self.RED, 0.24)
            else:
                stroke([(0, -0.55), (0, 0.3)], self.WHITE, 0.24)
                shape([(-0.42, 0.1), (0, 0.7), (0.42, 0.1)], self.WHITE, None)
        elif plate in ("warning", "yield"):
            up_or_down = 1 if plate == "warning" else -1
            triangle = np.array([(-1.1, -0.77), (1.1, -0.77), (0, 1.1)]) * (1, up_or_down)
            shape(triangle, self.RED)
            shape(triangle * 0.6, self.WHITE, None)
            if plate == "warning":
                stroke([(0, -0.3), (0, 0.2)], self.BLACK)
        elif plate == "stop":
            octagon = np.array(CIRCLE[1::2])
            shape(octagon * 1.08, self.WHITE)
            shape(octagon * 0.98, self.RED, None)
            for x in (-0.5, -0.17, 0.17, 0.5):
                stroke([(x, -0.22), (x, 0.22)], self.WHITE, 0.16)
        elif plate == "diamond":
            diamond = np.array([(0, -1.0), (-1, 0), (0, 1), (1, 0)])
            shape(diamond * 1.15, self.WHITE)
            shape(diamond * 0.85, (240, 190, 30), None)
        else:
            self._paint_panel(shape, stroke, plate)

    def _paint_panel(self, shape, stroke, plate: str) -> None:
        ground = self.panel if plate == "direction" else self.BLUE
        ink = self.BLACK if sum(ground) > 400 else self.WHITE
        w, h = (1.9, 0.85) if plate == "direction" else (0.95, 0.95)
        corners = np.array([(-1.0, -1.0), (-1, 1), (1, 1), (1, -1)])
        shape(corners * (w, h), ink)
        shape(corners * (w - 0.08, h - 0.08), ground, None)
        if plate == "parking":
            stroke([(-0.25, -0.6), (-0.25, 0.6), (0.2, 0.6), (0.35, 0.3), (0.2, 0), (-0.25, 0)], ink, 0.22)
        elif plate == "zebra":
            shape([(-0.75, -0.6), (0, 0.75), (0.75, -0.6)], self.WHITE, None)
            stroke([(-0.05, 0.2), (0.1, -0.4)], self.BLACK)
        else:
            for row, end in zip((-0.35, 0.35), self.text, strict=True):
                stroke([(-1.5, row), (end, row)], ink)


# car bodies: length, width, and the outline from the rear bumper over the roof to the front bumper, as
# (along, up) with what lies between this point and the next; metres
BODIES = {
    "hatchback": (4.0, 1.74, (
        (-2.0, 0.32, "rear"), (-2.0, 0.92, "body"), (-1.93, 1.0, "glass"), (-1.5, 1.46, "roof"),
        (0.05, 1.49, "glass"), (0.95, 1.0, "hood"), (1.85, 0.82, "body"), (2.0, 0.66, "front"),
        (2.0, 0.3, "end"))),
    "saloon": (4.6, 1.80, (
        (-2.3, 0.34, "rear"), (-2.3, 0.98, "hood"), (-1.65, 1.02, "glass"), (-1.0, 1.42, "roof"),
        (0.15, 1.45, "glass"), (1.05, 0.98, "hood"), (2.1, 0.84, "body"), (2.3, 0.66, "front"),
        (2.3, 0.3, "end"))),
    "estate": (4.6, 1.80, (
        (-2.3, 0.34, "rear"), (-2.3, 0.95, "body"), (-2.25, 1.02, "glass"), (-1.85, 1.44, "roof"),
        (0.1, 1.5, "glass"), (1.0, 1.0, "hood"), (2.1, 0.84, "body"), (2.3, 0.66, "front"),
        (2.3, 0.3, "end"))),
    "suv": (4.5, 1.88, (
        (-2.2, 0.42, "rear"), (-2.25, 1.1, "body"), (-2.2, 1.15, "glass"), (-1.85, 1.66, "roof"),
        (0.15, 1.72, "glass"), (0.95, 1.18, "hood"), (2.05, 1.02, "body"), (2.25, 0.8, "front"),
        (2.25, 0.4, "end"))),
    "van": (5.2, 2.0, (
        (-2.6, 0.4, "rear"), (-2.6, 1.3, "glass"), (-2.55, 2.05, "body"), (-2.5, 2.3, "roof"),
        (1.0, 2.35, "glass"), (1.85, 1.35, "hood"), (2.5, 1.1, "body"), (2.6, 0.85, "front"),
        (2.6, 0.4, "end"))),
}
PAINTS = (
    (228, 228, 230), (186, 190, 196), (120, 124, 130), (44, 46, 52), (30, 32, 36), (164, 34, 36),
    (36, 66, 130), (58, 104, 160), (40, 76, 58), (206, 160, 40), (184, 92, 36), (176, 164, 140),
    (110, 32, 44), (128, 168, 178),
)


class Car(Thing):
    """A car; its heading is in radians from straight away from the camera towards the right.

    Its body is the outline drawn out to both sides. Points of the car are (along, across, up): metres ahead
    of its middle, right of it and above the ground. Faces are gathered first and projected together.
    """

    def __init__(self, rng: Rng, point: np.ndarray, heading: float, braking: bool = False):
        self.x, self.z = float(point[0]), float(point[2])
        self.depth = self.z
        self.kind = pick(rng, ("hatchback", "hatchback", "saloon", "saloon", "estate", "suv", "suv", "van"))
        self.length, self.width, self.outline = BODIES[self.kind]
        self.color = jitter(rng, pick(rng, PAINTS), 0.05)
        self.sin, self.cos = math.sin(heading), math.cos(heading)
        self.braking = braking
        self.belt = {"van": 1.32, "suv": 1.14}.get(self.kind, 0.98)  # lower edge of the windows
        self.roof = max(y for _, y, _ in self.outline)
        self.wheel = 0.36 if self.kind in ("suv", "van") else 0.32
        self.rim = pick(rng, ((176, 178, 182), (120, 122, 126), (70, 72, 76)))
        self.faces: list = []

    def half(self, along: float, up: float) -> float:
        """Half the body's width: the cabin leans in, and the corners are drawn in."""
        lean, draw = (0.06, 0.03) if self.kind == "van" else (0.16, 0.09)
        high = min(max((up - self.belt) / (self.roof - self.belt), 0.0), 1.0)
        end = max(abs(along) / (self.length / 2) - 0.75, 0.0) * 4
        return self.width / 2 * (1 - lean * high) * (1 - draw * end)

    def world(self, points) -> np.ndarray:
        along, across, up = np.asarray(points, float).T
        x, z = self.x + along * self.sin + across * self.cos, self.z + along * self.cos - across * self.sin
        return np.stack((x, up, z), axis=1)

    def turn(self, along: float, across: float, up: float) -> tuple[float, float, float]:
        """A direction of the car's, in the world."""
        return along * self.sin + across * self.cos, up, along * self.cos - across * self.sin

    def shade(self, canvas: Canvas) -> None:
        end, w = self.length / 2, self.width / 2
        corners = [(a, b, c) for a in (-end, end) for b in (-w, w) for c in (0.0, 0.9)]
        corners += [(a, b, self.roof) for a in (-end * 0.7, end * 0.1) for b in (-w * 0.85, w * 0.85)]
        canvas.cast(self.world(corners))
        foot = self.world([(-end, -w, 0), (-end, w, 0), (end, w, 0), (end, -w, 0)])
        canvas.stain(canvas.contact, foot[:, (0, 2)])

    def paint(self, canvas: Canvas) -> None:
        if self.z - self.length / 2 < NEAR or not canvas.camera.sees(self.x, self.z, self.length):
            return
        self.faces.clear()
        size = canvas.camera.size(self.z)
        if size > 4:
            self._add_underside()
        for side in (-1, 1):
            if self._faces_camera(canvas, (0.0, side, 0.0), (0.0, side * self.width / 2, 0.8)):
                self._add_side(canvas.light, side, size)
        strips = []
        for (l0, y0, kind), (l1, y1, _) in zip(self.outline[:-1], self.outline[1:], strict=True):
            length = math.hypot(l1 - l0, y1 - y0)
            normal = ((y0 - y1) / length, 0.0, (l1 - l0) / length)
            middle = ((l0 + l1) / 2, 0.0, (y0 + y1) / 2)
            if self._faces_camera(canvas, normal, middle):
                strips.append((-middle[0] * self.cos, kind, (l0, y0, l1, y1), self.turn(*normal)))
        for _, kind, edges, normal in sorted(strips):
            self._add_strip(canvas.light, kind, edges, normal, detailed=size > 4)
        self._flush(canvas)

    def _faces_camera(self, canvas: Canvas, normal, point) -> bool:
        (nx, ny, nz), (px, py, pz) = self.turn(*normal), self.turn(*point)
        return nx * (self.x + px) + ny * (py - canvas.camera.eye) + nz * (self.z + pz) < 0

    def _add(self, points, color: Color, normal, glow: float = 0.0) -> None:
        self.faces.append((points, color, normal, glow))

    def _flush(self, canvas: Canvas) -> None:
        shapes = canvas.camera.project(self.world([point for points, *_ in self.faces for point in points]))
        start = 0
        for points, color, normal, glow in self.faces:
            shape = shapes[start : start + len(points)]
            canvas.fill([shape], canvas.tone(color, self.z, normal, glow), CAR)
            start += len(points)

    def _add_underside(self) -> None:
        """Tyres and a dark floor, of which what hangs below the body stays to be seen."""
        w, r, axle, floor = self.width / 2, 0.3, self.length / 2 - 0.8, self.length / 2 - 0.15
        for along in (axle, -axle) if self.cos > 0 else (-axle, axle):
            for a, b in ((-w + 0.02, -w + 0.24), (w - 0.24, w - 0.02)):
                for end in (along - r, along + r):
                    self._add([(end, a, 0), (end, a, 0.45), (end, b, 0.45), (end, b, 0)], (24, 24, 26), None)
        for end in (-floor, floor):
            self._add([(end, -w, 0.2), (end, -w, 0.45), (end, w, 0.45), (end, w, 0.2)], (26, 26, 28), None)

    def _add_side(self, light: Light, side: int, size: float) -> None:
        normal, low = self.turn(0.0, side, 0.0), self.length / 2

        def shape(points, color: Color) -> None:
            self._add([(a, side * (self.half(a, y) + 0.01), y) for a, y in points], color, normal)

        shape([(along, y) for along, y, _ in self.outline], self.color)
        shape([(-low + 0.1, 0.24), (-low + 0.02, 0.42), (low - 0.02, 0.42), (low - 0.1, 0.24)],
              mix(self.color, (20, 20, 22), 0.6))
        for window in self._windows():
            shape(window, mix((34, 40, 48), light.low, 0.18))
        if size > 9:
            dark, y = mix(self.color, (0, 0, 0), 0.45), self.belt - 0.12
            shape([(-0.37, 0.45), (-0.37, self.belt), (-0.34, self.belt), (-0.34, 0.45)], dark)
            for x in (-0.65, 0.65):
                shape([(x - 0.1, y), (x + 0.1, y), (x + 0.1, y - 0.05), (x - 0.1, y - 0.05)], dark)
        rings = ((1.2, (26, 26, 28)), (1.0, (34, 34, 36)), (0.62, self.rim), (0.2, (60, 60, 62)))
        for along in (-low + 0.78, low - 0.82):
            for share, color in rings if size > 6 else rings[1:3]:
                r, floor = self.wheel * share, 0.3 if share > 1 else 0.0
                self._add([(along + r * x, side * (self.width / 2 + 0.02), max(self.wheel + r * y, floor))
                           for x, y in CIRCLE], color, normal)

    def _windows(self):
        """The side windows, as outlines of (along, up): those behind and before the middle pillar."""
        rear, front = (i for i, (_, _, kind) in enumerate(self.outline) if kind == "glass")
        top = min(self.outline[rear + 1][1], self.outline[front][1]) - 0.1
        low = self.belt + 0.04

        def edge(i: int, height: float) -> float:
            (l0, y0, _), (l1, y1, _) = self.outline[i], self.outline[i + 1]
            return l0 + (l1 - l0) * (height - y0) / (y1 - y0)

        if self.kind == "van":
            ahead = edge(front, low + 0.1) - 0.12
            return [[(0.55, low), (0.55, top), (edge(front, top) - 0.1, top), (ahead, low)]]
        return [[(edge(rear, low) + 0.14, low), (edge(rear, top) + 0.14, top), (-0.4, top), (-0.4, low)],
                [(-0.3, low), (-0.3, top), (edge(front, top) - 0.1, top), (edge(front, low) - 0.12, low)]]

    def _add_strip(self, light: Light, kind: str, edges, normal, detailed: bool) -> None:
        l0, y0, l1, y1 = edges
        w0, w1 = self.half(l0, y0), self.half(l1, y1)

        def part(u0: float, u1: float, v0: float, v1: float, color: Color, glow: float = 0.0) -> None:
            """A rectangle of the strip, in shares: u from left to right, v from one edge to the other."""
            self._add([(l0 + (l1 - l0) * v, (2 * u - 1) * (w0 + (w1 - w0) * v), y0 + (y1 - y0) * v)
                       for u, v in ((u0, v0), (u0, v1), (u1, v1), (u1, v0))], color, normal, glow)

        part(0, 1, 0, 1, self.color)
        if kind == "glass":
            part(0.07, 0.93, 0.06, 0.94, mix((36, 42, 50), light.low, 0.12))
        if kind == "rear":
            lit = light.lamps or self.braking
            part(0.0, 1.0, 0.0, 0.3, mix(self.color, (40, 40, 42), 0.55))
            for u in (0.04, 0.76):
                part(u, u + 0.2, 0.62, 0.92, (230, 30, 28) if lit else (150, 24, 26), 0.9 if lit else 0.0)
        if kind == "front":
            lamp, glow = ((255, 246, 214), 1.0) if light.lamps else ((226, 230, 232), 0.15)
            part(0.0, 1.0, 0.7, 1.0, mix(self.color, (40, 40, 42), 0.55))
            part(0.03, 0.97, 0.02, 0.38, (34, 34, 36))
            for u in (0.05, 0.77):
                part(u, u + 0.18, 0.05, 0.35, lamp, glow)
        if not detailed:
            return
        if kind in ("roof", "hood"):
            part(0.05, 0.95, 0.05, 0.95, mix(self.color, light.low, 0.16))
        elif kind == "glass":
            part(0.12, 0.55, 0.5, 0.9, mix((48, 56, 66), light.low, 0.3))
        elif kind == "rear":
            part(0.36, 0.64, 0.42, 0.6, (226, 226, 214))
            if self.kind == "van":
                part(0.49, 0.51, 0.1, 1.0, mix(self.color, (0, 0, 0), 0.5))
        elif kind == "front":
            part(0.25, 0.75, 0.74, 0.92, (34, 34, 36))
            part(0.36, 0.64, 0.48, 0.68, (226, 226, 214))


SKINS = ((236, 196, 166), (222, 174, 140), (190, 136, 100), (140, 94, 66), (92, 62, 46))
HAIRS = ((40, 30, 26), (70, 48, 32), (120, 84, 48), (180, 140, 84), (28, 26, 28), (150, 150, 148))
CLOTHES = (
    (176, 40, 44), (40, 64, 130), (226, 222, 214), (44, 44, 50), (214, 150, 52), (64, 110, 90),
    (120, 60, 110), (90, 130, 176), (200, 96, 60), (96, 88, 78), (222, 196, 70), (220, 130, 150),
)
TROUSERS = ((44, 54, 82), (34, 36, 42), (84, 76, 66), (120, 112, 98), (60, 72, 98), (70, 48, 44))


class Person(Thing):
    """A person on foot, walking across the view or seen from before or behind."""

    def __init__(self, rng: Rng, point: np.ndarray, height: float | None = None):
        self.x, self.z = float(point[0]), float(point[2])
        self.depth = self.z
        self.height = height or rng.normal(1.73, 0.08)
        self.facing = pick(rng, (-1, 1))
        self.profile = rng.random() < 0.5  # seen from the side
        self.stride = rng.uniform(0.25, 1.0) * (1 if self.profile else 0.3)
        self.skin, self.hair = pick(rng, SKINS), jitter(rng, pick(rng, HAIRS), 0.08)
        self.top, self.bottom = jitter(rng, pick(rng, CLOTHES), 0.08), jitter(rng, pick(rng, TROUSERS), 0.08)
        self.coat = rng.uniform(0.45, 0.75) if rng.random() < 0.25 else None  # height of its hem
        self.bag = jitter(rng, pick(rng, CLOTHES), 0.1) if rng.random() < 0.35 else None
        self.bald = rng.random() < 0.06

    def shade(self, canvas: Canvas) -> None:
        canvas.cast([(self.x + dx, y, self.z) for dx in (-0.16, 0.16) for y in (0, self.height * 0.95)])
        canvas.touch(self.x, self.z, 0.35, 0.25)

    def paint(self, canvas: Canvas) -> None:
        if not canvas.camera.sees(self.x, self.z, 1.0):
            return
        f, step, swing, lift = self.facing, 0.34 * self.stride, 0.26 * self.stride, 0.04 * self.stride
        apart, wide, body = (0.0, 0.1, 0.16) if self.profile else (0.1, 0.25, 0.23)
        legs = [[(-apart, 0.92), (-apart - f * step * 0.3, 0.5), (-apart - f * step, 0.07 + lift)],
                [(apart, 0.92), (apart + f * step * 0.7, 0.52), (apart + f * step, 0.07)]]
        shoulder = 0.2 * wide if self.profile else 0.6 * wide
        swing, elbow = f * swing, 0.9 * wide
        arms = [[(-0.6 * wide, 1.38), (-elbow + swing * 0.5, 1.1), (-0.8 * wide + swing * 1.2, 0.88)],
                [(shoulder, 1.38), (elbow - swing * 0.6, 1.1), (elbow - swing, 0.86)]]
        up = Upright(canvas, self.x, self.z)
        self.figure(up, self.height / 1.75, legs, arms, (0.0, 0.9), (0.0, 1.44), body)

    def figure(self, up: Upright, scale: float, legs, arms, hip, neck, body: float) -> None:
        """Paint a person from the joints of legs and arms (the far ones first), hip and neck, and half the
        width of the body; metres of one 1.75 m tall, times `scale`."""

        def stroke(points, width: float, color: Color) -> None:
            up.stroke(np.array(points) * scale, width * scale, color, PERSON, 2)

        def shape(points, color: Color, label: int | None = PERSON) -> None:
            up.polygon(np.array(points) * scale, color, label)

        dark = (20, 20, 24)
        stroke(arms[0], 0.12, mix(self.top, dark, 0.35))
        for leg, shadow in zip(legs, (0.3, 0.0), strict=True):
            stroke(leg, 0.18, mix(self.bottom, dark, shadow))
            foot = np.array(leg[-1])
            stroke([foot - (self.facing * 0.03, 0.02), foot + (self.facing * 0.13, -0.03)], 0.1, (38, 32, 30))
        (hx, hy), (nx, ny) = hip, neck
        right = [(nx + body * 0.5, ny + 0.05), (nx + body, ny - 0.04), (hx + body * 0.8, hy - 0.06)]
        left = [(hx - body * 0.8, hy - 0.06), (nx - body, ny - 0.04), (nx - body * 0.5, ny + 0.05)]
        shape(left + right, self.top)
        if self.coat is not None:
            hem, waist = body * 1.15, body * 0.8
            skirt = [(-hem, self.coat), (-waist, hy), (waist, hy), (hem, self.coat)]
            shape([(hx + x, y) for x, y in skirt], self.top)
        shaded = left if up.canvas.light.sun[0] > 0 else right[::-1]
        shape([(hx, hy - 0.06), *shaded, (nx, ny)], mix(self.top, dark, 0.25), None)
        if self.bag is not None:
            x = nx - self.facing * (body + 0.05) if self.profile else nx
            low, top = ny - 0.45, ny - 0.06
            shape([(x - 0.12, low), (x - 0.12, top), (x + 0.12, top), (x + 0.12, low)], self.bag)
        stroke(arms[1], 0.125, self.top)
        stroke([arms[1][-1]] * 2, 0.09, self.skin)
        self._paint_head(up, np.array(neck), scale)

    def _paint_head(self, up: Upright, neck: np.ndarray, scale: float) -> None:
        head = neck + (0.02 * self.facing if self.profile else 0.0, 0.19)
        up.stroke(np.array((neck, head)) * scale, 0.1 * scale, mix(self.skin, (20, 20, 24), 0.2), PERSON, 2)
        up.ellipse(head * scale, (0.115 * scale, 0.14 * scale), self.skin, PERSON)
        if not self.bald:
            back = 0.5 * self.facing if self.profile else 0.0
            up.ellipse((head + (0, 0.02)) * scale, (0.13 * scale, 0.135 * scale), self.hair, PERSON,
                       (back + 0.1, back + math.pi - 0.1))


class Bicycle(Thing):
    """A bicycle, parked or ridden. `turn` is its angle out of the picture plane, radians."""

    PAINTS = ((190, 40, 40), (30, 90, 160), (40, 40, 44), (40, 120, 80), (220, 170, 40), (200, 200, 204),
              (120, 50, 120))

    def __init__(self, rng: Rng, point: np.ndarray, rider: bool, turn: float, facing: int):
        self.x, self.z = float(point[0]), float(point[2])
        self.depth = self.z
        self.facing, self.squeeze = facing, math.cos(turn)
        self.rider = Person(rng, point, rng.normal(1.74, 0.06)) if rider else None
        if self.rider is not None:
            self.rider.facing, self.rider.profile, self.rider.coat = facing, self.squeeze > 0.6, None
        self.color = jitter(rng, pick(rng, self.PAINTS), 0.06)
        self.crank = rng.uniform(0, 2 * math.pi)
        self.basket = rng.random() < 0.3

    def shade(self, canvas: Canvas) -> None:
        wide, top = 0.85 * max(self.squeeze, 0.3), 1.7 if self.rider else 0.9
        body = [(self.x + dx, y, self.z) for dx in (-wide, wide) for y in (0, 0.6)]
        canvas.cast([*body, (self.x, top, self.z)])
        canvas.touch(self.x, self.z, wide, 0.15)

    def paint(self, canvas: Canvas) -> None:
        if not canvas.camera.sees(self.x, self.z, 1.5):
            return
        up = Upright(canvas, self.x, self.z)
        direction = self.facing * self.squeeze

        def at(*points):
            return [(direction * along, y) for along, y in points]

        for hub in (-0.53, 0.53):
            wheel = at(*((hub + 0.35 * cos, 0.35 + 0.35 * sin) for cos, sin in [*CIRCLE, CIRCLE[0]]))
            canvas.glaze(up.pixels(wheel), canvas.tone((90, 92, 96), self.z), 0.5, BICYCLE)
            up.stroke(wheel, 0.085, (30, 30, 32), BICYCLE, 4)
        rear, front = (-0.53, 0.35), (0.53, 0.35)
        crank, seat, head = (-0.08, 0.3), (-0.24, 0.85), (0.36, 0.88)
        canvas.glaze(up.pixels(at(rear, seat, head, crank)), canvas.tone(self.color, self.z), 0.4, BICYCLE)
        for bar in ((rear, crank), (rear, seat), (crank, seat), (seat, head), (crank, head), (head, front)):
            up.stroke(at(*bar), 0.08, self.color, BICYCLE, 4)
        up.stroke(at(head, (0.38, 1.02), (0.5, 1.06)), 0.06, (40, 40, 42), BICYCLE, 3)
        across = 0.28 * math.sqrt(max(0.0, 1 - self.squeeze**2))
        if across > 0.1:
            grips = [(direction * 0.4 - across, 1.04), (direction * 0.4 + across, 1.04)]
            up.stroke(grips, 0.06, (40, 40, 42), BICYCLE, 3)
        up.stroke(at((-0.38, 0.93), (-0.14, 0.93)), 0.09, (36, 32, 30), BICYCLE, 3)
        if self.basket:
            up.polygon(at((0.45, 0.7), (0.45, 1.0), (0.78, 1.0), (0.72, 0.7)), (120, 92, 60), BICYCLE)
        if self.rider is not None:
            self._paint_rider(up, at)

    def _paint_rider(self, up: Upright, at) -> None:
        legs = []
        for phase in (self.crank + math.pi, self.crank):
            foot = (-0.08 + 0.17 * math.cos(phase), 0.3 + 0.17 * math.sin(phase))
            knee = (0.16 + 0.08 * math.cos(phase), 0.72 + 0.1 * math.sin(phase))
            legs.append(at((-0.24, 1.0), knee, foot))
        arm = at((0.1, 1.42), (0.26, 1.16), (0.46, 1.06))
        hip, neck = at((-0.22, 1.0), (0.08, 1.48))
        self.rider.figure(up, 1.0, legs, [arm, arm], hip, neck, 0.17 if self.rider.profile else 0.22)


# ----------------------------------------------------------------------------------------------------------
# furnishing the street


def furnish(rng: Rng, plan: Plan, camera: Camera) -> list[Thing]:
    """All things of the scene, in no order."""
    things: list[Thing] = []
    taken: list[tuple[float, float, float]] = []
    for side in (-1, 1):
        for start, end in plan.stretches(side):
            things += build_plots(rng, plan, side, start, end)
        things += line_pavement(rng, plan, side, camera, taken)
    things += drive(rng, plan, taken)
    things += park(rng, plan, taken)
    things += populate(rng, plan, camera, taken)
    return things


def claim(taken: list[tuple[float, float, float]], x: float, z: float, radius: float) -> bool:
    """Take the disc of ground for a thing, unless another thing has some of it."""
    if any((x - a) ** 2 + (z - b) ** 2 < (radius + r) ** 2 for a, b, r in taken):
        return False
    taken.append((x, z, radius))
    return True


FENCES = {
    "boards": ((142, 98, 62), (156, 118, 80)),
    "pickets": ((236, 234, 228), (216, 206, 190)),
    "bars": ((44, 46, 48), (72, 90, 108)),
}


def fence_run(rng: Rng, plan: Plan, s: float, z0: float, z1: float, kind: str | None = None) -> list[Fence]:
    kind = kind or pick(rng, tuple(FENCES))
    color = jitter(rng, pick(rng, FENCES[kind]), 0.05)
    height = rng.uniform(1.4, 1.9) if kind == "boards" else rng.uniform(1.1, 1.5)
    panel = max(2.0, 0.1 * z0)  # far ones are merged
    cuts = np.linspace(z0, z1, max(2, round((z1 - z0) / panel) + 1))
    corners = [plan.at(s, z) for z in cuts]
    return [Fence(a, b, kind, height, color) for a, b in zip(corners[:-1], corners[1:], strict=True)]


def build_plots(rng: Rng, plan: Plan, side: int, start: float, end: float) -> list[Thing]:
    """Houses, gardens and greens along one side between start and end."""
    things: list[Thing] = []
    district = plan.district[side > 0]
    line = plan.beside(side, plan.pavement[side > 0])
    z = start
    while z < end - 5:
        stop = min(z + rng.uniform(8, 17), end)
        if end - stop < 5:
            stop = end
        roll = rng.random()
        if district == "city" and roll < 0.85:
            things.append(Building(rng, plan, side, line, z, stop, "block"))
        elif district == "houses" and roll < 0.8:
            things += build_garden(rng, plan, side, line, z, stop)
        else:
            things += plant_green(rng, plan, side, line, z, stop)
        z = stop
    return things


def build_garden(rng: Rng, plan: Plan, side: int, line: float, z0: float, z1: float) -> list[Thing]:
    """A house set back behind a fence or a hedge and a few plants."""
    things: list[Thing] = []
    back = rng.uniform(2.5, 5.5)
    gap = rng.uniform(0.3, 2.0)
    things.append(Building(rng, plan, side, line + side * back, z0 + gap, z1 - 0.3, "house", lag=6.0))
    border = rng.random()
    gate = rng.uniform(z0 + 1, z1 - 2.5)
    for a, b in ((z0, gate), (gate + 1.4, z1)):
        if border < 0.75:
            things += fence_run(rng, plan, line + side * 0.1, a, b, None) if b - a > 1 else []
        elif border < 0.9 and b - a > 1:
            things.append(Hedge(rng, plan, line + side * 0.3, a, b))
    for _ in range(int(rng.integers(0, 4))):
        kind = pick(rng, ("bush", "bush", "young", "conifer"))
        point = plan.at(line + side * rng.uniform(0.9, back - 0.6), rng.uniform(z0, z1))
        things.append(Tree(rng, point, kind, lag=4.0))
    return things


def plant_green(rng: Rng, plan: Plan, side: int, line: float, z0: float, z1: float) -> list[Thing]:
    """A stretch of park: trees and bushes, often behind a fence."""
    things: list[Thing] = []
    if rng.random() < 0.65:
        kind = pick(rng, ("bars", "bars", "pickets"))
        things += fence_run(rng, plan, line + side * 0.1, z0, z1, kind)
    for _ in range(int(rng.integers(3, 7)) if z0 < 50 else 3):
        kind = pick(rng, ("broad", "broad", "slim", "conifer", "bush"))
        point = plan.at(line + side * rng.uniform(1.5, 14), rng.uniform(z0, z1))
        things.append(Tree(rng, point, kind, lag=4.0))
    return things


def line_pavement(rng: Rng, plan: Plan, side: int, camera: Camera, taken: list) -> list[Thing]:
    """Lamps, signs, trees, bollards and railings along the kerb."""
    things: list[Thing] = []
    s = plan.beside(side, 0.55)

    def add(z, radius, make) -> None:
        point = plan.at(s, z)
        if not plan.crosses(side, z, 0.8) and claim(taken, point[0], z, radius):
            things.append(make(point))

    kind = pick(rng, ("arm", "arm", "arm", "lantern", "lantern", "wood"))
    step = rng.uniform(11, 20)
    for z in np.arange(rng.uniform(6, 6 + step), 38, step):
        add(float(z), 0.3, lambda point: Pole(rng, point, side, kind))
    for _ in range(int(rng.integers(0, 5))):
        z = rng.uniform(7, 24)
        if camera.sees(plan.at(s, z)[0], z):
            add(z, 1.0, lambda point: Sign(rng, point))
    if rng.random() < 0.4:
        kind_tree, step = pick(rng, ("broad", "young", "young", "slim")), rng.uniform(8, 14)
        for z in np.arange(rng.uniform(7, 16), 80, step):
            add(float(z), 0.6, lambda point: Tree(rng, point, kind_tree))
    if rng.random() < 0.3:
        start, count = rng.uniform(6, 20), int(rng.integers(3, 8))
        for i in range(count):
            add(start + 1.6 * i, 0.2, lambda point: Pole(rng, point, side, "bollard"))
    elif rng.random() < 0.55:
        start = rng.uniform(7, 18)
        end = start + rng.uniform(5, 12)
        if not any(plan.crosses(side, z, 1.0) for z in np.arange(start, end, 1.0)):
            things += fence_run(rng, plan, plan.beside(side, 0.35), start, end, "bars")
            taken += [(float(plan.at(s, z)[0]), float(z), 0.4) for z in np.arange(start, end, 0.8)]
    return things


def drive(rng: Rng, plan: Plan, taken: list) -> list[Thing]:
    """Cars on the lanes and on the crossing street."""
    things: list[Thing] = []
    for s, direction in plan.lanes:
        z = rng.uniform(7, 30) if rng.random() < 0.8 else 200.0
        while z < 75:
            on_zebra = plan.zebra is not None and plan.zebra[0] - 3 < z < plan.zebra[1] + 3
            point = plan.at(s + rng.uniform(-0.3, 0.3), z)
            if not on_zebra and claim(taken, point[0], z, 1.9):
                heading = plan.heading(z) + (0 if direction > 0 else math.pi)
                things.append(Car(rng, point, heading, braking=rng.random() < 0.3))
            z += rng.uniform(8, 30)
    if plan.crossing is not None and rng.random() < 0.65:
        z = plan.crossing[0] + (plan.crossing[1] - plan.crossing[0]) * pick(rng, (0.28, 0.72))
        s = rng.uniform(plan.left - 4, plan.right + 4)
        if plan.crossed != "both":
            s = rng.uniform(1, plan.right + 5) if plan.crossed == "right" else rng.uniform(plan.left - 5, -1)
        point = plan.at(s, z)
        if claim(taken, point[0], z, 2.2):
            things.append(Car(rng, point, pick(rng, (-1, 1)) * math.pi / 2 + rng.normal(0, 0.06)))
    return things


def park(rng: Rng, plan: Plan, taken: list) -> list[Thing]:
    """Cars in the parking lanes."""
    things: list[Thing] = []
    for side, wide in zip((-1, 1), plan.parking, strict=True):
        z = rng.uniform(5, 10)
        while wide and z < 70:
            point = plan.at(plan.beside(side, -1.05), z)
            on_zebra = plan.zebra is not None and plan.zebra[0] - 4 < z < plan.zebra[1] + 4
            clear = not plan.crosses(side, z, 4) and not on_zebra
            if clear and rng.random() < 0.7 and claim(taken, point[0], z, 1.5):
                flip = math.pi if (side < 0) != (rng.random() < 0.15) else 0.0
                things.append(Car(rng, point, plan.heading(z) + flip + rng.normal(0, 0.02)))
            z += rng.uniform(5.4, 6.6)
    return things


def populate(rng: Rng, plan: Plan, camera: Camera, taken: list) -> list[Thing]:
    """Persons and bicycles on pavements, crossing and road."""
    things: list[Thing] = []

    def place(near: float, far: float, out: tuple[float, float], radius: float):
        """A free place that the camera sees, `out` metres outside the road; None when no try finds one."""
        for _ in range(20):
            side, z = pick(rng, (-1, 1)), near + (far - near) * rng.random() ** 1.4
            point = plan.at(plan.beside(side, rng.uniform(*out)), z)
            inside = out[0] < 0 or not plan.crosses(side, z, 0.5)
            if inside and camera.sees(point[0], z) and claim(taken, point[0], z, radius):
                return point
        return None

    narrow = min(plan.pavement)
    for _ in range(int(rng.integers(3, 11))):
        point = place(6, 20, (0.9, narrow - 0.2), 0.4)
        if point is not None:
            things.append(Person(rng, point, rng.uniform(1.05, 1.35) if rng.random() < 0.12 else None))
    if plan.zebra is not None and rng.random() < 0.5:
        for _ in range(int(rng.integers(1, 4))):
            z = rng.uniform(*plan.zebra)
            point = plan.at(rng.uniform(plan.left, plan.right), z)
            if camera.sees(point[0], z) and claim(taken, point[0], z, 0.4):
                things.append(Person(rng, point))
    for _ in range(int(rng.integers(0, 5))):
        point = place(6, 15, (0.5, narrow - 0.4), 0.8)
        if point is not None:
            things.append(Bicycle(rng, point, False, rng.uniform(0, 0.9), pick(rng, (-1, 1))))
    for _ in range(int(rng.integers(0, 3))):
        point = place(7, 16, (-1.4, -0.7), 0.9)
        if point is not None:
            things.append(Bicycle(rng, point, True, rng.uniform(0.4, 1.15), pick(rng, (-1, 1))))
    return things


# ----------------------------------------------------------------------------------------------------------
# finish


def paint_bonnet(canvas: Canvas) -> None:
    """The camera car's own bonnet along the lower edge: it belongs to no class."""
    rng, camera = canvas.rng, canvas.camera
    height, width = camera.height, camera.width
    rise, color = height * rng.uniform(0.06, 0.12), jitter(rng, pick(rng, PAINTS), 0.05)
    x = np.linspace(-0.05, 1.05, 25)
    for lower, share in ((0.0, 0.0), (0.25, 0.12)):
        y = height - rise * (1 - lower) * (1 - np.abs(2 * x - 1) ** 3.5)
        below = [(width * 1.05, height + 2), (-width * 0.05, height + 2)]
        shape = np.concatenate((np.stack((x * width, y), axis=1), below))
        tone = canvas.tone(mix(color, canvas.light.low, 0.3 - share * 2), 0.0, (0, 1, 0))
        canvas.fill([shape], tone, VOID)


# deviation of the surface grain of each class, as a share of its brightness
GRAIN = {SKY: 0.006, BUILDING: 0.035, VEGETATION: 0.08, CAR: 0.012, PERSON: 0.02, FENCE: 0.03}


def develop(canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Halve the canvas; then what a lens and a sensor do: blur, vignette, colour cast, contrast and noise."""
    rng = canvas.rng
    height, width = canvas.camera.height // SUPERSAMPLING, canvas.camera.width // SUPERSAMPLING
    label = np.ascontiguousarray(canvas.label[::SUPERSAMPLING, ::SUPERSAMPLING])
    image = cv2.resize(canvas.image, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)

    grain = np.zeros(256, np.float32)
    grain[list(GRAIN)] = list(GRAIN.values())
    y, x = np.indices((height, width), np.float32) * np.float32(2.3) + np.float32(rng.uniform(0, 256))
    image *= (1 + cv2.GaussianBlur(grain[label], (0, 0), 0.7) * sample_tile(0.7, x, y))[..., None]

    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.65))
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    vignette = 1 - np.float32(rng.uniform(0, 0.12)) * (x * x + y * y)
    cast = np.float32(rng.normal(1, 0.025, 3) * rng.normal(1, 0.05))
    image *= vignette[..., None] * cast
    contrast, bias = rng.uniform(0.92, 1.12), rng.uniform(-6, 6)
    image = (image - 118) * np.float32(contrast) + np.float32(118 + bias)
    image += rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(1.0, 3.0))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), label


# ----------------------------------------------------------------------------------------------------------
# drawing a data set


def draw_share(folder: str, height: int, width: int, train: int, val: int, seed: int, share: int, of: int):
    """Draw every `of`-th scene, from number `share` on, into folder/image and folder/label as PNG files.

    Scene i of a split depends on (seed, split, i) alone. Raises OSError where a file cannot be written.
    """
    scenes = [(split, i) for split, count in enumerate((train, val)) for i in range(count)]
    for split, i in scenes[share::of]:
        image, label = draw_scene(np.random.default_rng([seed, split, i]), height, width)
        name = f"{('train', 'val')[split]}_{i:05}.png"
        for kind, pixels in (("image", image[..., ::-1]), ("label", label)):
            path = Path(folder, kind, name)
            if not cv2.imwrite(str(path), pixels):
                raise OSError(f"{path}: could not be written (is the disk full?)")


if __name__ == "__main__":
    cv2.setNumThreads(1)
    draw_share(sys.argv[1], *map(int, sys.argv[2:]))
