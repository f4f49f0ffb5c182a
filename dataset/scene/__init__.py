"""Drawn street scenes: picture and label by the same calls.

A scene is planned in metres (X right, Y up, Z forward, the camera stands above the origin), seen through a
pinhole camera and painted from far to near. The ground is shaded pixel by pixel, all else is polygons, strokes
and discs; each goes into the picture and, with its class, into the label. Both are drawn at twice the size
asked for; the picture is then averaged, and the label sampled, so no class appears that was not drawn. All
random choices come from the one generator given.

canvas: light, camera, canvas. plan, ground: the street, and what lies under and behind it. building, furniture,
traffic: the things that stand in it. furnish: which stand where. finish: lens and sensor. draw: all in order.
"""

from dataset.scene.canvas import CLASSES, VERSION
from dataset.scene.draw import draw_scene, draw_share

__all__ = ["CLASSES", "VERSION", "draw_scene", "draw_share"]
