"""The plan of a street, in metres.

Where road, pavements, crossings and plots lie.
"""

import math
from dataclasses import dataclass

import numpy as np

from dataset.scene.canvas import FAR, MARKING, PAVEMENT, ROAD, VEGETATION, Rng, pick

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


@dataclass(frozen=True)
class Line:
    """A painted line along the road at `s`.

    dash 0 is solid. Metres.
    """

    s: float
    width: float
    dash: float = 0.0
    gap: float = 0.0
    phase: float = 0.0
    yellow: bool = False


class Plan:
    """Where road, pavements and crossing lie.

    Places are (s, z): metres right of the camera's path, which bends with the road, and ahead. `side` is -1 for left, 1
    for right. Pairs are (left, right).
    """

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
        self.manholes = [
            (rng.uniform(self.left + 0.6, self.right - 0.6), rng.uniform(4, 20)) for _ in range(int(rng.integers(0, 4)))
        ]
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
        """Return the world point (3,) of a place."""
        return np.array((s + self.curve / 2 * z * z, 0.0, z))

    def beside(self, side: int, out: float) -> float:
        """Return s of a point `out` metres outside the road."""
        return self.left - out if side < 0 else self.right + out

    def heading(self, z: float) -> float:
        """Return the road's direction at z.

        Radians from straight ahead towards the right.
        """
        return math.atan(self.curve * z)

    def crosses(self, side: int, z: float, margin: float = 0.0) -> bool:
        """Tell whether the crossing street takes the pavement at z."""
        if self.crossing is None or self.crossed == ("left" if side > 0 else "right"):
            return False
        return self.crossing[0] - margin < z < self.crossing[1] + margin

    def stretches(self, side: int) -> list[tuple[float, float]]:
        """Return the runs of z where plots lie on a side."""
        if self.crossing is None or not self.crosses(side, sum(self.crossing) / 2):
            return [(-4.0, FAR)]
        return [(-4.0, self.crossing[0] - self.corner), (self.crossing[1] + self.corner, FAR)]
