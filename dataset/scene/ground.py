"""Sky, skyline and ground."""

import math

import cv2
import numpy as np

from dataset.scene.building import WALLS
from dataset.scene.canvas import BUILDING, ROAD, SUPERSAMPLING, VEGETATION, Camera, Canvas, jitter, pick, sample_tile
from dataset.scene.plan import ASPHALT, GROUND, IRON, JOINT, KERB, PATCH, PAVING, WHITE, YELLOW, Plan


def paint_sky(canvas: Canvas) -> None:
    light, camera, rng = canvas.light, canvas.camera, canvas.rng
    right, below = (offsets[::SUPERSAMPLING, ::SUPERSAMPLING] for offsets in camera.rays())
    rows = int((below < 0).any(axis=1).sum()) + 1  # the ground covers the others
    right, below = right[:rows], below[:rows]
    above = np.maximum(-below, 0) / np.float32(camera.focal)
    share = np.sqrt(np.minimum(above / np.float32(0.7), 1))[..., None]
    sky = np.array(light.low, np.float32) * (1 - share) + np.array(light.zenith, np.float32) * share

    # a layer of clouds: parallel to the ground, so it shrinks towards the horizon
    distance = np.float32(26) / (above + np.float32(0.12))
    u, v = (np.float32(start) for start in rng.uniform(0, 256, 2))
    u, v = right / np.float32(camera.focal) * distance + u, distance * np.float32(1.6) + v
    thickness = sample_tile(1.7, u, v) - np.float32(1.3 - 2.6 * light.cover)
    opacity = np.clip(thickness * np.float32(0.9), 0, 1) * np.clip(above * 9, np.float32(0.12), 1)
    relief = 1 + np.float32(0.07) * sample_tile(1.2, u + 3, v + 3) - np.float32(0.05) * opacity
    cloud = np.array(light.cloud, np.float32) * np.minimum(relief, np.float32(1.05))[..., None]
    sky += (cloud - sky) * (opacity * np.float32(0.9))[..., None]

    if light.sun[2] > 0.2 and light.cover < 0.7:
        x, y = (camera.focal * light.sun[0] / light.sun[2], -camera.focal * light.sun[1] / light.sun[2])
        reach = np.float32(0.16 * camera.width)
        glow = np.exp(-np.hypot(right - np.float32(x), below - np.float32(y)) / reach)
        sky += glow[..., None] * (np.array((255, 246, 214), np.float32) - sky) * np.float32(0.8)
    sky = np.clip(sky, 0, 255).astype(np.uint8)
    rows = min(rows * SUPERSAMPLING, camera.height)
    canvas.image[:rows] = cv2.resize(sky, (camera.width, rows), interpolation=cv2.INTER_LINEAR)


def paint_skyline(canvas: Canvas) -> None:
    """Paint far houses and trees along the horizon."""
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


def paint_ground(canvas: Canvas, plan: Plan) -> None:
    """Paint everything below the horizon, pixel by pixel."""
    camera, light, rng = canvas.camera, canvas.light, canvas.rng
    right, below = camera.rays()
    first = int(np.argmax((below > 0.5).any(axis=1)))
    right, below = right[first:], below[first:]
    under = below > 0.5
    z = np.float32(camera.focal * camera.eye) / np.maximum(below, np.float32(0.5))
    x = right * z * np.float32(1 / camera.focal)
    s = x - np.float32(plan.curve / 2) * z * z
    material = survey(plan, camera, s, z)

    tones = [jitter(rng, color, 0.12 if kind == ROAD else 0.06, 0.02) for color, kind, _ in GROUND]
    color = np.array(tones, np.float32)
    color[[JOINT, PATCH]] = color[[PAVING, ASPHALT]] * np.array(((0.80,), (0.88,)), np.float32)
    near, x = np.minimum(z, np.float32(200)), np.clip(x, np.float32(-1000), np.float32(1000))
    fine = sample_tile(0.3, x * 26, near * 26) * np.clip(14 / near, np.float32(0.15), 1)
    grain = np.array([0.6 * grain for _, _, grain in GROUND], np.float32)[material]
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
    np.copyto(canvas.label[first:], np.array([label for _, label, _ in GROUND], np.uint8)[material], where=under)


def wrap(values: np.ndarray, period: float) -> np.ndarray:
    """Return values modulo period.

    NumPy's own is many times slower on float32.
    """
    return values - np.floor(values * np.float32(1 / period)) * np.float32(period)


def survey(plan: Plan, camera: Camera, s: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return the material of ground points (s, z).

    Indices into GROUND; for places see Plan.
    """
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


def mark_lanes(plan: Plan, camera: Camera, material: np.ndarray, s: np.ndarray, z: np.ndarray) -> None:
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
