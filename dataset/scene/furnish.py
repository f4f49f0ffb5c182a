"""Furnishing a street: which things stand where."""

import math

import numpy as np

from dataset.scene.building import Building
from dataset.scene.canvas import Camera, Rng, Thing, jitter, pick
from dataset.scene.furniture import Fence, Hedge, Pole, Sign, Tree
from dataset.scene.plan import Plan
from dataset.scene.traffic import Bicycle, Car, Person


def furnish(rng: Rng, plan: Plan, camera: Camera) -> list[Thing]:
    """Return all things of the scene, in no order."""
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
    """Take a disc of ground unless some of it is taken."""
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
    """Build a house set back behind a fence or a hedge."""
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
    """Plant a stretch of park: trees, bushes, often a fence."""
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
    if rng.random() < 0.2:
        start, count = rng.uniform(6, 20), int(rng.integers(3, 8))
        for i in range(count):
            add(start + 1.6 * i, 0.2, lambda point: Pole(rng, point, side, "bollard"))
    elif rng.random() < 0.6:
        start = rng.uniform(6, 16)
        end = start + rng.uniform(5, 12)
        if not any(plan.crosses(side, z, 1.0) for z in np.arange(start, end, 1.0)):
            things += fence_run(rng, plan, plan.beside(side, 0.35), start, end, "bars")
            taken += [(float(plan.at(s, z)[0]), float(z), 0.4) for z in np.arange(start, end, 0.8)]
    return things


def drive(rng: Rng, plan: Plan, taken: list) -> list[Thing]:
    """Put cars on the lanes and on the crossing street."""
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
    """Put cars in the parking lanes."""
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
    """Put persons and bicycles on pavements, crossing and road."""
    things: list[Thing] = []

    def place(near: float, far: float, out: tuple[float, float], radius: float):
        """Return a free place that the camera sees, or None.

        `out` metres outside the road; None when no try finds one.
        """
        for _ in range(20):
            side, z = pick(rng, (-1, 1)), near + (far - near) * rng.random() ** 1.4
            point = plan.at(plan.beside(side, rng.uniform(*out)), z)
            inside = out[0] < 0 or not plan.crosses(side, z, 0.5)
            if inside and camera.sees(point[0], z) and claim(taken, point[0], z, radius):
                return point
        return None

    narrow = min(plan.pavement)
    for _ in range(int(rng.integers(4, 14))):
        point = place(5.5, 19, (0.9, narrow - 0.2), 0.4)
        if point is not None:
            things.append(Person(rng, point, rng.uniform(1.05, 1.35) if rng.random() < 0.12 else None))
    if plan.zebra is not None and rng.random() < 0.5:
        for _ in range(int(rng.integers(1, 4))):
            z = rng.uniform(*plan.zebra)
            point = plan.at(rng.uniform(plan.left, plan.right), z)
            if camera.sees(point[0], z) and claim(taken, point[0], z, 0.4):
                things.append(Person(rng, point))
    for _ in range(int(rng.integers(1, 6))):
        point = place(5.5, 14, (0.5, narrow - 0.4), 0.8)
        if point is not None:
            things.append(Bicycle(rng, point, False, rng.uniform(0, 0.9), pick(rng, (-1, 1))))
    for _ in range(int(rng.integers(0, 4))):
        point = place(7, 16, (-1.4, -0.7), 0.9)
        if point is not None:
            things.append(Bicycle(rng, point, True, rng.uniform(0.4, 1.15), pick(rng, (-1, 1))))
    return things
