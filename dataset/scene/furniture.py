"""What stands beside the road: trees, hedges, fences, poles and signs."""

import math

import numpy as np

from dataset.scene.building import Wall
from dataset.scene.canvas import (
    CIRCLE,
    FENCE,
    NEAR,
    POLE,
    SIGN,
    SUPERSAMPLING,
    VEGETATION,
    Canvas,
    Color,
    Rng,
    Thing,
    Upright,
    clip_near,
    jitter,
    mix,
    pick,
)
from dataset.scene.plan import Plan

LEAVES = ((70, 104, 44), (86, 116, 50), (58, 92, 52), (96, 122, 62), (78, 96, 40))
AUTUMN = ((176, 124, 44), (164, 92, 40))


def paint_leaves(canvas: Canvas, centre: np.ndarray, radii, color: Color, z: float, leaf: float) -> None:
    """Paint a leafy ellipse in canvas pixels.

    A dark body under tufts of radius `leaf`, lit from the sun's side.
    """
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
        self.height = {
            "broad": rng.uniform(5, 9),
            "slim": rng.uniform(6, 10),
            "conifer": rng.uniform(5, 10),
            "bush": rng.uniform(0.7, 1.6),
            "young": rng.uniform(3.4, 4.6),
        }[kind]
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
            self.normal = (self.wall.along[2], -0.0, -self.wall.along[0])

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

    SIZES = {
        "arm": (5.5, 7.5, 0.15),
        "lantern": (3.0, 4.2, 0.14),
        "wood": (6.5, 8.5, 0.18),
        "bollard": (0.9, 1.1, 0.15),
    }  # lowest, highest, radius
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
