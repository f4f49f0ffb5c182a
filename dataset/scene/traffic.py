"""Who moves: cars, persons and bicycles."""

import math

import numpy as np

from dataset.scene.canvas import (
    BICYCLE,
    CAR,
    CIRCLE,
    NEAR,
    PERSON,
    Canvas,
    Color,
    Light,
    Rng,
    Thing,
    Upright,
    jitter,
    mix,
    pick,
)

# car bodies: length, width, and the outline from the rear bumper over the roof to the front bumper, as
# (along, up) with what lies between this point and the next; metres
BODIES = {
    "hatchback": (
        4.0,
        1.74,
        (
            (-2.0, 0.32, "rear"),
            (-2.0, 0.92, "body"),
            (-1.93, 1.0, "glass"),
            (-1.5, 1.46, "roof"),
            (0.05, 1.49, "glass"),
            (0.95, 1.0, "hood"),
            (1.85, 0.82, "body"),
            (2.0, 0.66, "front"),
            (2.0, 0.3, "end"),
        ),
    ),
    "saloon": (
        4.6,
        1.80,
        (
            (-2.3, 0.34, "rear"),
            (-2.3, 0.98, "hood"),
            (-1.65, 1.02, "glass"),
            (-1.0, 1.42, "roof"),
            (0.15, 1.45, "glass"),
            (1.05, 0.98, "hood"),
            (2.1, 0.84, "body"),
            (2.3, 0.66, "front"),
            (2.3, 0.3, "end"),
        ),
    ),
    "estate": (
        4.6,
        1.80,
        (
            (-2.3, 0.34, "rear"),
            (-2.3, 0.95, "body"),
            (-2.25, 1.02, "glass"),
            (-1.85, 1.44, "roof"),
            (0.1, 1.5, "glass"),
            (1.0, 1.0, "hood"),
            (2.1, 0.84, "body"),
            (2.3, 0.66, "front"),
            (2.3, 0.3, "end"),
        ),
    ),
    "suv": (
        4.5,
        1.88,
        (
            (-2.2, 0.42, "rear"),
            (-2.25, 1.1, "body"),
            (-2.2, 1.15, "glass"),
            (-1.85, 1.66, "roof"),
            (0.15, 1.72, "glass"),
            (0.95, 1.18, "hood"),
            (2.05, 1.02, "body"),
            (2.25, 0.8, "front"),
            (2.25, 0.4, "end"),
        ),
    ),
    "van": (
        5.2,
        2.0,
        (
            (-2.6, 0.4, "rear"),
            (-2.6, 1.3, "glass"),
            (-2.55, 2.05, "body"),
            (-2.5, 2.3, "roof"),
            (1.0, 2.35, "glass"),
            (1.85, 1.35, "hood"),
            (2.5, 1.1, "body"),
            (2.6, 0.85, "front"),
            (2.6, 0.4, "end"),
        ),
    ),
}
PAINTS = (
    (228, 228, 230),
    (186, 190, 196),
    (120, 124, 130),
    (44, 46, 52),
    (30, 32, 36),
    (164, 34, 36),
    (36, 66, 130),
    (58, 104, 160),
    (40, 76, 58),
    (206, 160, 40),
    (184, 92, 36),
    (176, 164, 140),
    (110, 32, 44),
    (128, 168, 178),
)


class Car(Thing):
    """A car, with its heading.

    In radians from straight away from the camera towards the right. Its body is the outline drawn out to both sides.
    Points of the car are (along, across, up): metres ahead of its middle, right of it and above the ground. Faces are
    gathered first and projected together.
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
        """Return half the body's width at a place.

        The cabin leans in, and the corners are drawn in.
        """
        lean, draw = (0.06, 0.03) if self.kind == "van" else (0.16, 0.09)
        high = min(max((up - self.belt) / (self.roof - self.belt), 0.0), 1.0)
        end = max(abs(along) / (self.length / 2) - 0.75, 0.0) * 4
        return self.width / 2 * (1 - lean * high) * (1 - draw * end)

    def world(self, points) -> np.ndarray:
        along, across, up = np.asarray(points, float).T
        x, z = self.x + along * self.sin + across * self.cos, self.z + along * self.cos - across * self.sin
        return np.stack((x, up, z), axis=1)

    def turn(self, along: float, across: float, up: float) -> tuple[float, float, float]:
        """Return a direction of the car's in the world."""
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
        shape(
            [(-low + 0.1, 0.24), (-low + 0.02, 0.42), (low - 0.02, 0.42), (low - 0.1, 0.24)],
            mix(self.color, (20, 20, 22), 0.6),
        )
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
                self._add(
                    [
                        (along + r * x, side * (self.width / 2 + 0.02), max(self.wheel + r * y, floor))
                        for x, y in CIRCLE
                    ],
                    color,
                    normal,
                )

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
        return [
            [(edge(rear, low) + 0.14, low), (edge(rear, top) + 0.14, top), (-0.4, top), (-0.4, low)],
            [(-0.3, low), (-0.3, top), (edge(front, top) - 0.1, top), (edge(front, low) - 0.12, low)],
        ]

    def _add_strip(self, light: Light, kind: str, edges, normal, detailed: bool) -> None:
        l0, y0, l1, y1 = edges
        w0, w1 = self.half(l0, y0), self.half(l1, y1)

        def part(u0: float, u1: float, v0: float, v1: float, color: Color, glow: float = 0.0) -> None:
            """Paint a rectangle of the strip, in shares of its sides."""
            self._add(
                [
                    (l0 + (l1 - l0) * v, (2 * u - 1) * (w0 + (w1 - w0) * v), y0 + (y1 - y0) * v)
                    for u, v in ((u0, v0), (u0, v1), (u1, v1), (u1, v0))
                ],
                color,
                normal,
                glow,
            )

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
    (176, 40, 44),
    (40, 64, 130),
    (226, 222, 214),
    (44, 44, 50),
    (214, 150, 52),
    (64, 110, 90),
    (120, 60, 110),
    (90, 130, 176),
    (200, 96, 60),
    (96, 88, 78),
    (222, 196, 70),
    (220, 130, 150),
)
TROUSERS = ((44, 54, 82), (34, 36, 42), (84, 76, 66), (120, 112, 98), (60, 72, 98), (70, 48, 44))


class Person(Thing):
    """A person on foot, seen from aside, before or behind."""

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
        legs = [
            [(-apart, 0.92), (-apart - f * step * 0.3, 0.5), (-apart - f * step, 0.07 + lift)],
            [(apart, 0.92), (apart + f * step * 0.7, 0.52), (apart + f * step, 0.07)],
        ]
        shoulder = 0.2 * wide if self.profile else 0.6 * wide
        swing, elbow = f * swing, 0.9 * wide
        arms = [
            [(-0.6 * wide, 1.38), (-elbow + swing * 0.5, 1.1), (-0.8 * wide + swing * 1.2, 0.88)],
            [(shoulder, 1.38), (elbow - swing * 0.6, 1.1), (elbow - swing, 0.86)],
        ]
        up = Upright(canvas, self.x, self.z)
        self.figure(up, self.height / 1.75, legs, arms, (0.0, 0.9), (0.0, 1.44), body)

    def figure(self, up: Upright, scale: float, legs, arms, hip, neck, body: float) -> None:
        """Paint a person from the joints of legs and arms.

        The far ones first; hip and neck, and half the width of the body; metres of one 1.75 m tall, times `scale`.
        """

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
            up.ellipse(
                (head + (0, 0.02)) * scale,
                (0.13 * scale, 0.135 * scale),
                self.hair,
                PERSON,
                (back + 0.1, back + math.pi - 0.1),
            )


class Bicycle(Thing):
    """A bicycle, parked or ridden.

    `turn` is its angle out of the picture plane, radians.
    """

    PAINTS = (
        (190, 40, 40),
        (30, 90, 160),
        (40, 40, 44),
        (40, 120, 80),
        (220, 170, 40),
        (200, 200, 204),
        (120, 50, 120),
    )

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
            self._paint_rider(self.rider, up, at)

    def _paint_rider(self, rider: Person, up: Upright, at) -> None:
        legs = []
        for phase in (self.crank + math.pi, self.crank):
            foot = (-0.08 + 0.17 * math.cos(phase), 0.3 + 0.17 * math.sin(phase))
            knee = (0.16 + 0.08 * math.cos(phase), 0.72 + 0.1 * math.sin(phase))
            legs.append(at((-0.24, 1.0), knee, foot))
        arm = at((0.1, 1.42), (0.26, 1.16), (0.46, 1.06))
        hip, neck = at((-0.22, 1.0), (0.08, 1.48))
        rider.figure(up, 1.0, legs, [arm, arm], hip, neck, 0.17 if rider.profile else 0.22)
