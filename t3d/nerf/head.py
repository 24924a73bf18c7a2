"""One rendered head: rays → F_θ (Eq. 4) → integral (Eq. 5) → H_u → image."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from t3d.camera import Camera
from t3d.codes import HeadCodes
from t3d.nerf import rays as ray_functions
from t3d.nerf.field import Field
from t3d.nerf.integral import Integral, integrate
from t3d.nerf.rays import Guide
from t3d.nerf.upsampler import Upsampler

REMAT = ("none", "all")


@struct.dataclass
class View:
    """Who looks at the head, and from where.

    Attributes:
        camera: of the view, [B, …]; head_to_world: [B, 4, 4]; guide: of its rays, [B, R, …].
    """

    camera: Camera
    head_to_world: jax.Array
    guide: Guide


@struct.dataclass
class Rendering:
    """An image and what the rays saw.

    Attributes:
        image: [B, size, size, 3] in [0, 1], white outside the head; or None, not asked for.
        alpha: [B, F, F] opacity of each ray; depth: [B, F, F] cm along the camera's z axis.
    """

    image: jax.Array | None
    alpha: jax.Array
    depth: jax.Array


class Head(nn.Module):
    """The conditional radiance field with its upsampler (F̂ of Eq. 5).

    Attributes:
        field: F_θ; size: side of the image; samples: per ray.
        frames, latent: rows and width of the table of per-frame codes (what is not speech).
        capacity: how many rays of an image are evaluated, the active ones first.
        points: where in its interval a sample lies ('middle', 'edge'; nerf.rays.sample).
        backdrop: what is behind the head: one 'colour' of features, or a 'map' of rays × rays.
        rays: per side of an image, which the map hangs on.
        spread: of the upsampler.
        chunk: points that are evaluated at once, over the batch and all devices, 0 for all: bounds
            the memory of large images.
        remat: what backpropagation computes anew instead of keeping it: 'none'; or 'all' of F_θ
            and the integral, for the least memory.
    """

    field: Field
    size: int
    samples: int
    frames: int
    latent: int
    capacity: int
    points: str = "middle"
    backdrop: str = "colour"
    rays: int = 0
    spread: str = "tile"
    chunk: int = 0
    remat: str = "none"

    def setup(self):
        self.upsampler = Upsampler(self.size, dtype=self.field.dtype, spread=self.spread)
        places = (self.rays, self.rays) if self.backdrop == "map" else ()
        shape = (*places, self.field.features)
        self.background = self.param("background", nn.initializers.ones, shape)
        if self.latent:  # an empty array could not be saved
            self.latents = self.param("latents", nn.initializers.zeros, (self.frames, self.latent))

    def latent_of(
        self, frame: jax.Array | None, batch: int, rows: jax.Array | None = None
    ) -> jax.Array:
        """Per-frame codes [B, latent] in training; where no frame is given their mean.

        Rows that no training frame has moved from zero do not count, and nothing moves a row but
        its own frame.

        Args:
            rows: [B, 2] first and end of the rows of each one's speaker; None: all.
        """
        if not self.latent:
            return jnp.zeros((batch, 0))
        if frame is not None:
            return self.latents[frame]
        latents = jax.lax.stop_gradient(self.latents)
        counts = jnp.any(latents != 0, -1)[None]
        if rows is not None:
            place = jnp.arange(self.frames)
            counts = counts & (place >= rows[:, :1]) & (place < rows[:, 1:])
        weight = counts / jnp.maximum(counts.sum(-1, keepdims=True), 1)
        return jnp.broadcast_to(weight @ latents, (batch, self.latent))

    def collect(
        self,
        codes: HeadCodes,
        latent: jax.Array,
        view: View,
        rays: int,
        key: jax.Array | None = None,
    ) -> Integral:
        """Evaluates and integrates the selected rays of a rays × rays view.

        On several devices the rays are divided among those of the mesh's axis for them.

        Returns:
            The Integral [B, capacity], of the active rays in their order (`nerf.rays.select`).
        """
        origin, direction = ray_functions.head_rays(view.camera, view.head_to_world, rays)
        chosen = ray_functions.select(view.guide.active, self.capacity)
        batch = chosen.shape[0]
        place = None  # drawn for every ray, so that the numbers do not hang on the capacity
        if key is not None:
            drawn = self.samples + (self.points == "edge")
            place = jax.random.uniform(key, (batch, rays**2, drawn))

        def of_chosen(x: jax.Array) -> jax.Array:
            index = chosen.reshape(*chosen.shape, *[1] * (x.ndim - 2))
            taken = jnp.take_along_axis(x, index, 1)
            return nn.with_logical_constraint(taken, ("frames", "rays", *[None] * (x.ndim - 2)))

        guide, direction, place = jax.tree.map(of_chosen, (view.guide, direction, place))

        def shade(head: Head, piece: tuple) -> Integral:
            """Integrals of some of those rays."""
            guide, direction, place = piece
            samples = ray_functions.sample(
                origin, direction, guide, head.samples, place, head.points
            )
            features, density = head.field.shade(samples.points, codes, latent)
            density = density * guide.active[..., None]
            return integrate(density, features, samples.edges, samples.stretch)

        hit = self._in_pieces(shade, (guide, direction, place), batch)
        return hit.replace(feature=self.field.out(hit.feature, hit.alpha))

    def _in_pieces(self, shade: Callable, rays: tuple, batch: int) -> Integral:
        """shade(rays) [B, capacity, …], so many rays at a time that `chunk` points are evaluated.

        A piece takes every n-th ray: where devices divide the rays, each has some of it.
        """
        least = -(-batch * self.capacity * self.samples // self.chunk) if self.chunk else 1
        pieces = next(n for n in range(min(least, self.capacity), self.capacity + 1)
                      if self.capacity % n == 0)  # fmt: skip
        if self.remat == "all":  # outside a loop XLA would merge what is computed twice
            shade = nn.remat(shade, prevent_cse=pieces == 1)
        if pieces == 1:
            return shade(self, rays)

        def cut(x: jax.Array) -> jax.Array:
            return jnp.moveaxis(x.reshape(batch, -1, pieces, *x.shape[2:]), 2, 0)

        def join(x: jax.Array) -> jax.Array:
            x = jnp.moveaxis(x, 0, 2)
            return x.reshape(batch, self.capacity, *x.shape[3:])

        scan = nn.scan(
            lambda head, none, piece: (none, shade(head, piece)),
            variable_broadcast="params",
            split_rngs={"params": False},
        )
        return jax.tree.map(join, scan(self, None, jax.tree.map(cut, rays))[1])

    def __call__(
        self,
        codes: HeadCodes,
        view: View,
        frame: jax.Array | None = None,
        key: jax.Array | None = None,
        image: bool = True,
        rows: jax.Array | None = None,
    ) -> Rendering:
        """Renders the head.

        Args:
            codes: [B, …]; view: [B, …] with F² rays each; frame: [B] rows of the latent table, or
            None for the mean of `rows` (`latent_of`); key: jitters the samples (training); image:
            whether one is wanted, or opacity and depth alone. A map behind the head is resized to
            other rays than its own.
        """
        rays = int(round(view.guide.near.shape[-1] ** 0.5))
        batch = view.head_to_world.shape[0]
        hit = self.collect(codes, self.latent_of(frame, batch, rows), view, rays, key)
        # Each ray looks up its own result by its rank among the active ones.
        rank = jnp.cumsum(view.guide.active, -1) - 1
        known = view.guide.active & (rank < self.capacity)
        place = jnp.clip(rank, 0, self.capacity - 1)

        def spread(values: jax.Array, elsewhere: jax.Array) -> jax.Array:
            index = place.reshape(*place.shape, *[1] * (values.ndim - 2))
            mask = known.reshape(index.shape)
            full = jnp.where(mask, jnp.take_along_axis(values, index, 1), elsewhere)
            return full.reshape(batch, rays, rays, *values.shape[2:])

        alpha = spread(hit.alpha, 0.0)
        seen = Rendering(image=None, alpha=alpha, depth=spread(hit.depth, 0.0))
        if not image:
            return seen
        behind = self.background
        if self.backdrop == "map" and rays != self.rays:
            behind = jax.image.resize(behind, (rays, rays, behind.shape[-1]), "linear")
        merged = spread(hit.feature, 0.0) + (1 - alpha)[..., None] * behind
        return seen.replace(image=self.upsampler(merged))


def capacity_of(active) -> int:
    """Rays to evaluate per image so that no active one of [T, R] is left out.

    A multiple of an eighth of R, and one at least, so that few programs are compiled whatever the
    view.
    """
    rays = active.shape[-1]
    step = max(1, rays // 8)
    return min(rays, step * max(1, -(-int(active.sum(-1).max()) // step)))
