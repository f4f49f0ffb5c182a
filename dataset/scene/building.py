"""Houses: walls in perspective, roofs, windows, doors and shops."""

import numpy as np

from dataset.scene.canvas import BUILDING, NEAR, SUPERSAMPLING, Canvas, Color, Rng, Thing, jitter, mix, pick
from dataset.scene.plan import Plan

WALLS = (
    (214, 196, 160),
    (226, 216, 196),
    (200, 168, 122),
    (196, 190, 182),
    (168, 162, 156),
    (176, 104, 80),
    (206, 172, 152),
    (222, 206, 140),
    (140, 128, 116),
    (188, 176, 168),
    (158, 120, 92),
    (150, 84, 66),
)
ROOFS = ((156, 82, 58), (132, 70, 54), (92, 88, 92), (112, 92, 80), (78, 80, 88), (170, 100, 72))
DOORS = ((92, 60, 42), (50, 70, 60), (110, 40, 38), (60, 64, 78))
TRIMS = ((236, 232, 224), (236, 232, 224), (96, 84, 76), (70, 70, 74))
SHOPS = ((60, 74, 66), (120, 40, 40), (52, 60, 88), (70, 58, 50), (176, 170, 160), (44, 44, 48))
AWNINGS = ((176, 52, 48), (48, 96, 74), (216, 206, 186), (56, 84, 140), (214, 150, 60))


class Wall:
    """An upright rectangle over the ground from `start` to `end`.

    Both are (3,); its points are (u along, v up).
    """

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
        """Return the rectangle (4, 3) with these sides."""
        return self.points((u0, u0, u1, u1), (v0, v1, v1, v0))

    def quads(self, u0: np.ndarray, u1: np.ndarray, v0, v1) -> np.ndarray:
        """Return rectangles (n, 4, 3) with these sides.

        The sides are arrays (n,) or numbers.
        """
        v = np.empty((len(u0), 4))
        v[:, 0] = v[:, 3] = v0
        v[:, 1] = v[:, 2] = v1
        return self.points(np.stack((u0, u0, u1, u1), axis=1), v)


class Building(Thing):
    """A house, or a block of a city, along the street.

    Its front goes from z0 to z1 at s.
    """

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
        """Return a world point at a share of the front.

        back and height: metres back from it and up.
        """
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
            gable = [
                self.corner(0, 0, self.height),
                self.corner(0, self.deep / 2, self.height + self.rise),
                self.corner(0, self.deep, self.height),
            ]
            normal = tuple(-(self.b - self.a) / np.linalg.norm(self.b - self.a))
            if self.roof == "ridge":
                canvas.polygon(gable, self.wall, BUILDING, normal)
            self._paint_facade(canvas, end, normal, street=False)
        if self.roof == "gable":
            gable = [
                self.corner(0, 0, self.height),
                self.corner(0.5, 0, self.height + self.rise),
                self.corner(1, 0, self.height),
            ]
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
            self._paint_shop(shop, canvas, wall, normal, size)

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

    def _paint_shop(self, shop: Color, canvas: Canvas, wall: Wall, normal, size: float) -> None:
        rng, high = canvas.rng, self.storey
        glow = 0.7 if canvas.light.lamps else 0.15
        canvas.polygon(wall.quad(0, wall.length, 0, high), shop, BUILDING, normal)
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
