"""Ray casting of a solid in the corner of a room, seen from above, with shading, highlight and antialiasing.

Lengths are in sides of the cube at scale 1; y is up, the floor is y = 0, and the walls are the planes x = -WALL and
z = -WALL. The camera turns about the solid, so an orientation of 0 sees the room's corner in the middle. Rays
are computed by sums, products, quotients and square roots alone, which are exactly rounded, so that how many pictures
are rendered at once does not change them. The camera's angle goes through the machine's sine and cosine.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

WALL = 2.4  # distance of the walls from the solid's axis
SAMPLES = 3  # rays along each side of a pixel
_CAMERA = (5.5, 2.6, 0.55)  # distance from the axis, height, and the height that it looks at
_FIELD = 0.27  # tangent of half the field of view
_LIGHT = (0.44, 0.88, 0.18)  # unit vector towards the light, in the room
_AMBIENT, _HIGHLIGHT = 0.4, 0.35
_SHADOW = 0.55  # how dark the floor is under the solid
_KEPT = 128  # largest resolution at which the views of the empty room are kept in memory

Colour = Sequence[float]  # red, green, blue in 0 to 1


class Solid(NamedTuple):
    """A solid that stands on the floor of the room."""

    kind: str  # cube, cylinder, sphere or capsule
    scale: float  # 1: a cube has sides of length 1
    colour: Colour  # red, green, blue in 0 to 1


class _Hit(NamedTuple):
    distance: Tensor  # [P], in lengths of the ray's direction; infinite where a ray misses
    normal: Tensor  # [3, P], unit vectors


class _Rays(NamedTuple):
    origin: Sequence[float]
    directions: Tensor  # [3, P], unit vectors

    def at(self, distance: Tensor) -> Tensor:
        """Return the points (x, y, z) at `distance` [P] along each of the P rays, [3, P]."""
        return torch.stack([o + distance * d for o, d in zip(self.origin, self.directions, strict=True)])


class _View(NamedTuple):
    rays: _Rays
    half: Tensor  # [3, P], unit vectors halfway between the directions to the light and to the camera
    distance: Tensor  # [P], to the floor or a wall
    on_floor: Tensor  # bool [P]
    brightness: Tensor  # [P], of floor and walls, without the solid's shadow
    from_axis: Tensor  # [P], square of the distance between the point on the floor and the solid's axis


def render(solid: Solid, floor: Colour, wall: Colour, degrees: float, resolution: int) -> Tensor:
    """Render a solid in a room.

    Args:
        solid: the solid, which stands on the floor.
        floor: colour (red, green, blue) of the floor, each in 0 to 1.
        wall: colour of both walls.
        degrees: angle by which the camera stands to the right of the room's diagonal.
        resolution: pixels along each side, R.

    Returns:
        uint8 [3, R, R].
    """
    view = (_kept_view if resolution <= _KEPT else _view)(degrees, resolution * SAMPLES)
    hit = _SOLIDS[solid.kind](view.rays, solid.scale)
    seen = hit.distance < view.distance
    shade = view.brightness * _shadow(view, _RADII[solid.kind] * solid.scale)
    lit, highlight = _diffuse(hit.normal), _highlight(hit.normal, view.half)
    channels = [
        torch.where(seen, (c * lit + highlight).clamp(max=1), torch.where(view.on_floor, f, w) * shade)
        for c, f, w in zip(solid.colour, floor, wall, strict=True)
    ]
    return _downsample(torch.stack(channels), resolution)


def _downsample(channels: Tensor, resolution: int) -> Tensor:
    """Return the picture, uint8 [3, R, R] for R = `resolution`: a pixel is the mean over its SAMPLES^2 (9) rays.

    `channels` [3, P] holds the red, green and blue of all P rays. The rays of a pixel are added in a fixed order.
    """
    rays = channels.view(3, resolution, SAMPLES, resolution, SAMPLES)
    total = sum(rays[:, :, i, :, j] for i in range(SAMPLES) for j in range(SAMPLES))
    return (torch.as_tensor(total) * (255 / SAMPLES**2)).round().byte()


def _camera(turn: float, side: int) -> _Rays:
    """Return a camera's `side` x `side` rays through its square picture, row by row from the top left.

    `turn` is the angle, in radians, by which the camera stands to the right of the room's diagonal.
    """
    distance, height, target = _CAMERA
    angle = math.pi / 4 - turn
    out = math.cos(angle), math.sin(angle)
    slope = (height - target) / math.hypot(distance, height - target)  # sine of the camera's downward pitch
    level = distance / math.hypot(distance, height - target)
    forward, up = (-out[0] * level, -slope, -out[1] * level), (-out[0] * slope, level, -out[1] * slope)
    right = (out[1], 0.0, -out[0])
    steps = ((torch.arange(side) * 2 + 1) / side - 1) * _FIELD
    x, y = steps.repeat(side), (-steps).repeat_interleave(side)
    directions = torch.stack([f + x * r + y * u for f, r, u in zip(forward, right, up, strict=True)])
    return _Rays((out[0] * distance, height, out[1] * distance), directions / _dot(directions, directions).sqrt())


def _view(degrees: float, side: int) -> _View:
    """Return the rays of a camera turned by `degrees`, and distance and brightness of the empty room along each.

    There are `side` x `side` rays; a camera that is not turned stands on the room's diagonal.
    """
    rays = _camera(math.radians(degrees), side)
    distances = torch.stack([_plane(rays, axis, -WALL if axis != 1 else 0.0) for axis in range(3)])
    distance, nearest = distances.min(0)
    normal = torch.stack([(nearest == axis).float() for axis in range(3)])
    x, _, z = rays.at(distance)
    half = torch.stack([light - d for light, d in zip(_LIGHT, rays.directions, strict=True)])
    return _View(rays, half / _dot(half, half).sqrt(), distance, nearest == 1, _diffuse(normal), x * x + z * z)


_kept_view = lru_cache(maxsize=15)(_view)  # Shapes3D has 15 orientations


def _plane(rays: _Rays, axis: int, level: float) -> Tensor:
    """Return the distance along P rays to a plane, [P]; infinite for a ray that misses it.

    On the plane, coordinate number `axis` (0: x, 1: y, 2: z) equals `level`.
    """
    distance = (level - rays.origin[axis]) / rays.directions[axis]
    return torch.where(distance > 0, distance, torch.inf)


def _shadow(view: _View, radius: float) -> Tensor:
    """Return a factor [P], in 0 to 1, for the brightness along each of P rays: below 1 in the shadow of a solid.

    `view` is the empty room along the rays, `radius` the solid's; the shadow is on the floor about the axis x = z = 0.
    """
    near = 1 + view.from_axis / (radius * radius)
    near = near * near
    return torch.where(view.on_floor, 1 - _SHADOW * 4 / (near * near).clamp(min=4), 1.0)


def _highlight(normal: Tensor, half: Tensor) -> Tensor:
    """Return the brightness [P] of the highlight on a surface at P points (Blinn 1977).

    `normal` and `half`, the direction halfway between light and camera, are unit vectors [3, P].
    """
    cosine = _dot(normal, half).clamp(min=0)
    for _ in range(4):
        cosine = cosine * cosine  # to the power of 16
    return _HIGHLIGHT * cosine


def _diffuse(normal: Tensor) -> Tensor:
    cosine = _LIGHT[0] * normal[0] + _LIGHT[1] * normal[1] + _LIGHT[2] * normal[2]
    return _AMBIENT + (1 - _AMBIENT) * cosine.clamp(min=0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cube(rays: _Rays, scale: float) -> _Hit:
    half = 0.5 * scale
    origin = (rays.origin[0], rays.origin[1] - half, rays.origin[2])
    ends = [((-half - o) / d, (half - o) / d) for o, d in zip(origin, rays.directions, strict=True)]
    entries, exits = zip(*((torch.minimum(a, b), torch.maximum(a, b)) for a, b in ends), strict=True)
    entry, axis = torch.stack(entries).max(0)
    hits = (entry < torch.stack(exits).amin(0)) & (entry > 0)
    normal = torch.stack([-torch.sign(d) * (axis == i) for i, d in enumerate(rays.directions)])
    return _Hit(torch.where(hits, entry, torch.inf), normal)


def _sphere(rays: _Rays, scale: float) -> _Hit:
    return _ball(rays, 0.62 * scale, 0.62 * scale)


def _ball(rays: _Rays, radius: float, height: float) -> _Hit:
    """Return where P rays hit a ball with its centre at x = z = 0, y = `height`: distances [P] and normals [3, P]."""
    centre = (0.0, height, 0.0)
    offset = torch.tensor([o - c for o, c in zip(rays.origin, centre, strict=True)])
    b = _dot(offset, rays.directions)
    distance = _first_root(b, _dot(offset, offset) - radius * radius)
    points = rays.at(distance)
    return _Hit(distance, (points - torch.tensor(centre)[:, None]) / radius)


def _first_root(b: Tensor, c: Tensor) -> Tensor:
    """Return the smaller root t of t^2 + 2 b t + c for each of b and c, [P]; infinite where there is none."""
    square = b * b - c
    return torch.where(square > 0, -b - square.clamp(min=0).sqrt(), torch.inf)


def _tube(rays: _Rays, radius: float, low: float, high: float) -> _Hit:
    """Return distances [P] and normals [3, P] where P rays hit the side of an upright cylinder.

    Its axis is x = z = 0, from y = `low` to `high`.
    """
    (ox, _, oz), (dx, _, dz) = rays.origin, rays.directions
    a = dx * dx + dz * dz
    distance = _first_root((ox * dx + oz * dz) / a, (ox * ox + oz * oz - radius * radius) / a)
    x, y, z = rays.at(distance)
    normal = torch.stack([x / radius, torch.zeros_like(x), z / radius])
    return _Hit(torch.where((y >= low) & (y <= high), distance, torch.inf), normal)


def _cylinder(rays: _Rays, scale: float) -> _Hit:
    radius, height = 0.48 * scale, 1.1 * scale
    distance = _plane(rays, 1, height)
    x, _, z = rays.at(distance)
    top = torch.where(x * x + z * z <= radius * radius, distance, torch.inf)
    upwards = torch.tensor([0.0, 1.0, 0.0])[:, None].expand(3, len(top))
    return _nearest(_Hit(top, upwards), _tube(rays, radius, 0.0, height))


def _capsule(rays: _Rays, scale: float) -> _Hit:
    radius, height = 0.4 * scale, 1.35 * scale
    balls = [_ball(rays, radius, centre) for centre in (radius, height - radius)]
    return _nearest(_nearest(*balls), _tube(rays, radius, radius, height - radius))


def _nearest(first: _Hit, second: _Hit) -> _Hit:
    nearer = first.distance <= second.distance
    distance = torch.where(nearer, first.distance, second.distance)
    return _Hit(distance, torch.where(nearer, first.normal, second.normal))


_SOLIDS: dict[str, Callable[[_Rays, float], _Hit]] = {
    "cube": _cube,
    "cylinder": _cylinder,
    "sphere": _sphere,
    "capsule": _capsule,
}
_RADII = {"cube": 0.55, "cylinder": 0.48, "sphere": 0.5, "capsule": 0.4}
