"""Rays of a view in the head's frame, and where they are sampled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from t3d import camera as cameras
from t3d.camera import Camera


@struct.dataclass
class Guide:
    """Where the rays of a view meet the head, by the 3DMM's surface (baked by prior/shell.py).

    Attributes:
        near, far: [..., R] depths (cm) between which a ray is sampled.
        offset: [..., R, 3] from a point near the expressed surface to the same place on the
            neutral head (cm, head frame): what undoes the expression.
        active: [..., R] whether the ray meets the shell at all.
    """

    near: jax.Array
    far: jax.Array
    offset: jax.Array
    active: jax.Array


@struct.dataclass
class Samples:
    """Points on rays.

    Attributes:
        points: [..., R, S, 3] in the head's frame, expression undone (cm).
        edges: [..., R, S + 1] depths that bound each sample's interval (cm).
        stretch: [..., R] length of a ray per unit of depth.
    """

    points: jax.Array
    edges: jax.Array
    stretch: jax.Array


def head_rays(camera: Camera, head_to_world: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Rays of a size × size view in the head's frame: origin [..., 3], direction [..., R, 3]."""
    origin, direction = cameras.rays(camera, size)
    world_to_head = cameras.inverse(head_to_world)
    rotation = jnp.swapaxes(world_to_head[..., :3, :3], -1, -2)
    return cameras.transform(world_to_head, origin[..., None, :])[..., 0, :], direction @ rotation


def select(active: jax.Array, capacity: int) -> jax.Array:
    """Indices [..., capacity] of rays, the active ones first (in image order)."""
    return jnp.argsort(~active, axis=-1, stable=True)[..., :capacity]


def between_heights(origin, direction, high: float, low: float):
    """Depths near, far [..., R] (cm) at which rays pass two heights over the head's frontal plane.

    HeadNeRF's samples lie on such planes, equal z of the head's frame, whatever the camera. Depths
    of rays along the planes, or away from them, are infinite or negative.

    Args:
        origin: [..., 3]; direction: [..., R, 3] (unit depth), in the head's frame.
        high, low: z (cm).
    """
    fall = -direction[..., 2]
    return (origin[..., None, 2] - high) / fall, (origin[..., None, 2] - low) / fall


def sample(
    origin: jax.Array,
    direction: jax.Array,
    guide: Guide,
    samples: int,
    place: jax.Array | None = None,
    at: str = "middle",
) -> Samples:
    """Cuts each ray's [near, far] into equal intervals and takes a point in each.

    Args:
        origin: [..., 3]; direction: [..., R, 3] (unit depth); guide of the same rays.
        samples: S, per ray.
        place: [..., R, S] of the points in their intervals, 0 to 1; None takes the middles.
        at: 'edge' takes, as HeadNeRF does, each interval's near edge for its point; then
            place [..., R, S + 1] is that of the edges between the middles on both sides of them.
    """
    steps = jnp.linspace(0.0, 1.0, samples + 1)
    if at == "edge":
        if place is not None:
            middle = 0.5 * (steps[1:] + steps[:-1])
            low = jnp.concatenate([steps[:1], middle])
            steps = low + (jnp.concatenate([middle, steps[-1:]]) - low) * place
        place = 0.0
    edges = guide.near[..., None] + (guide.far - guide.near)[..., None] * steps
    place = 0.5 if place is None else place
    depth = edges[..., :-1] + place * (edges[..., 1:] - edges[..., :-1])
    points = origin[..., None, None, :] + depth[..., None] * direction[..., None, :]
    return Samples(
        points=points + guide.offset[..., None, :],
        edges=edges,
        stretch=jnp.linalg.norm(direction, axis=-1),
    )
