"""A z-buffer rasteriser for the host: mesh to depth, normal, mask, colour, barycentric images."""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np


class Raster(NamedTuple):
    """What each pixel sees.

    Attributes:
        depth: [H, W] float32, inf where nothing is drawn.
        triangle: [H, W] int32, -1 where nothing is drawn.
        barycentric: [H, W, 3] float32, perspective-correct, 0 where nothing is drawn.
    """

    depth: np.ndarray
    triangle: np.ndarray
    barycentric: np.ndarray


class Images(NamedTuple):
    """A drawn mesh.

    Attributes:
        depth: [H, W] float32, inf where nothing is drawn.
        mask: [H, W] bool, True where something is.
        barycentric: [H, W, 3] float32, perspective-correct, 0 where nothing is drawn.
        normal: [H, W, 3] float32, of unit length, 0 where nothing is drawn.
        colour: [H, W, 3] float32, 0 where nothing is drawn.
    """

    depth: np.ndarray
    mask: np.ndarray
    barycentric: np.ndarray
    normal: np.ndarray
    colour: np.ndarray


@numba.njit(cache=True, nogil=True)
def _fill(uv, depth, triangles, farthest, z_out, triangle_out, weight_out):
    """Draws every triangle into the buffers; edges count as inside, so no cracks open."""
    height, width = z_out.shape
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        za, zb, zc = float(depth[a]), float(depth[b]), float(depth[c])
        if not (za > 0.0 and zb > 0.0 and zc > 0.0):
            continue
        xa, ya = float(uv[a, 0]), float(uv[a, 1])
        xb, yb = float(uv[b, 0]), float(uv[b, 1])
        xc, yc = float(uv[c, 0]), float(uv[c, 1])
        left, right = min(xa, xb, xc), max(xa, xb, xc)
        top, bottom = min(ya, yb, yc), max(ya, yb, yc)
        if not (right >= 0.5 and left <= width - 0.5 and bottom >= 0.5 and top <= height - 0.5):
            continue
        j0, j1 = math.ceil(max(left - 0.5, 0.0)), math.floor(min(right - 0.5, width - 1.0))
        i0, i1 = math.ceil(max(top - 0.5, 0.0)), math.floor(min(bottom - 0.5, height - 1.0))
        if j0 > j1 or i0 > i1:
            continue
        area = (xb - xa) * (yc - ya) - (yb - ya) * (xc - xa)
        if not abs(area) > 0.0:
            continue
        scale = 1.0 / area
        for i in range(i0, i1 + 1):
            y = i + 0.5
            for j in range(j0, j1 + 1):
                x = j + 0.5
                wa = ((xb - x) * (yc - y) - (yb - y) * (xc - x)) * scale
                wb = ((xc - x) * (ya - y) - (yc - y) * (xa - x)) * scale
                wc = 1.0 - wa - wb
                if wa < -1e-9 or wb < -1e-9 or wc < -1e-9:
                    continue
                wa, wb, wc = wa / za, wb / zb, wc / zc
                z = 1.0 / (wa + wb + wc)
                drawn = triangle_out[i, j] >= 0
                if drawn and (z <= z_out[i, j] if farthest else z >= z_out[i, j]):
                    continue
                z_out[i, j] = z
                triangle_out[i, j] = t
                weight_out[i, j, 0] = wa * z
                weight_out[i, j, 1] = wb * z
                weight_out[i, j, 2] = wc * z


@numba.njit(cache=True, nogil=True)
def _blend(triangle, barycentric, triangles, attributes, out):
    """out[i, j] = the barycentric mean of the attributes at the corners of the pixel's triangle."""
    for i in range(triangle.shape[0]):
        for j in range(triangle.shape[1]):
            t = triangle[i, j]
            if t < 0:
                continue
            for k in range(3):
                corner, weight = triangles[t, k], barycentric[i, j, k]
                for channel in range(attributes.shape[1]):
                    out[i, j, channel] += weight * attributes[corner, channel]


@numba.njit(cache=True, nogil=True)
def _to_unit_length(vectors):
    """Scales vectors [H, W, 3] in place; those of no length stay as they are."""
    for i in range(vectors.shape[0]):
        for j in range(vectors.shape[1]):
            x, y, z = vectors[i, j]
            squared = x * x + y * y + z * z
            if squared > 0.0:
                vectors[i, j] /= math.sqrt(squared)


def rasterize(
    uv_pixels: np.ndarray,
    depth: np.ndarray,
    triangles: np.ndarray,
    height: int,
    width: int,
    farthest: bool = False,
) -> Raster:
    """Draws a mesh; both faces of a triangle count, triangles that reach behind the eye do not.

    Args:
        uv_pixels: [V, 2] image positions (x right, y down) in pixels; the centre of pixel
            (row i, column j) is at (j + 0.5, i + 0.5).
        depth: [V] along the camera's z axis, positive in front.
        triangles: [F, 3] vertex indices.
        height: rows of the image.
        width: columns of the image.
        farthest: keep the farthest surface of a pixel, not the nearest.
    """
    z = np.full((height, width), np.inf, np.float32)
    index = np.full((height, width), -1, np.int32)
    weight = np.zeros((height, width, 3), np.float32)
    _fill(
        np.ascontiguousarray(uv_pixels, np.float32),
        np.ascontiguousarray(depth, np.float32),
        np.ascontiguousarray(triangles, np.int32),
        farthest,
        z,
        index,
        weight,
    )
    return Raster(z, index, weight)


def interpolate(raster: Raster, triangles: np.ndarray, attributes: np.ndarray) -> np.ndarray:
    """Vertex attributes [V, C] as an image [H, W, C] float32; 0 where nothing is drawn."""
    out = np.zeros((*raster.triangle.shape, attributes.shape[1]), np.float32)
    _blend(
        raster.triangle,
        raster.barycentric,
        np.ascontiguousarray(triangles, np.int32),
        np.ascontiguousarray(attributes, np.float32),
        out,
    )
    return out


def render(
    uv_pixels: np.ndarray,
    depth: np.ndarray,
    triangles: np.ndarray,
    normals: np.ndarray,
    colours: np.ndarray,
    size: int,
) -> Images:
    """All images of a mesh, size × size; shading is in the colours, between vertices it is linear.

    Args:
        uv_pixels: [V, 2]; depth: [V]; triangles: [F, 3]; size: as `rasterize`.
        normals: [V, 3], in the axes in which the image of normals shall be.
        colours: [V, 3].
    """
    seen = rasterize(uv_pixels, depth, triangles, size, size)
    normal = interpolate(seen, triangles, normals)
    _to_unit_length(normal)
    colour = interpolate(seen, triangles, colours)
    return Images(seen.depth, seen.triangle >= 0, seen.barycentric, normal, colour)
