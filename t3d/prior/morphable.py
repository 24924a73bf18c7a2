"""The morphable head model: a linear family of meshes, driven by coefficients in σ.

Model frame: centimetres, x towards image right when the head is seen from the front, y up, z out
of the face towards the viewer. Functions take NumPy or JAX arrays and give the same kind back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from t3d.errors import UserError

Array = Any

IDENTITY_DIM = 100
EXPRESSION_DIM = 79
ALBEDO_DIM = 100
# σ of a blendshape's weight: a weight of 1 is the coefficient 1 / EXPRESSION_STD.
EXPRESSION_STD = 0.25


@struct.dataclass
class MorphableModel:
    """A linear head model; bases are multiplied by their standard deviation, spare ones are zero.

    Attributes:
        mean: [V, 3] centimetres, the neutral mean head.
        identity_basis: [100, V, 3] centimetres per σ.
        expression_basis: [79, V, 3] centimetres per σ (blendshape times EXPRESSION_STD).
        albedo_mean: [V, 3] in [0, 1], sRGB-like.
        albedo_basis: [100, V, 3] per σ.
        triangles: [F, 3] int32, counter-clockwise seen from outside.
        landmarks68: [68] int32 vertices in iBUG order (36 is the outer eye corner at image left).
        lips79: [79] int32 vertices on four rings from the outer to the inner lip contour, 20 to a
            ring (the last one 19): from the corner at image left along the lower lip to the
            other corner and back along the upper lip, as MediaPipe's lip rings.
        region: [V] int32, index into region_names.
        name: of the basis.
        expression_names: of the first expression vectors, ICT-FaceKit's; empty if they have none.
        region_names: of the parts of the mesh.
    """

    mean: Array
    identity_basis: Array
    expression_basis: Array
    albedo_mean: Array
    albedo_basis: Array
    triangles: Array
    landmarks68: Array
    lips79: Array
    region: Array
    name: str = struct.field(pytree_node=False)
    expression_names: tuple[str, ...] = struct.field(pytree_node=False)
    region_names: tuple[str, ...] = struct.field(pytree_node=False)


def padded(basis: np.ndarray, count: int) -> np.ndarray:
    """A basis [K, V, 3] with zero vectors appended up to `count`, float32."""
    out = np.zeros((count, *basis.shape[1:]), np.float32)
    out[: len(basis)] = basis
    return out


def _offset(basis: Array, coefficients: Array) -> Array:
    """Coefficients [..., K] times basis [K, V, 3] -> [..., V, 3]."""
    flat = basis.reshape(basis.shape[0], -1)
    if isinstance(basis, jax.Array) or isinstance(coefficients, jax.Array):
        offset = jnp.matmul(coefficients, flat, precision="highest")
    else:
        offset = coefficients @ flat
    return offset.reshape(*coefficients.shape[:-1], *basis.shape[1:])


def vertices(model: MorphableModel, identity: Array, expression: Array) -> Array:
    """Vertices [..., V, 3] (centimetres, model frame) of a head.

    Args:
        model: the basis.
        identity: [..., 100] in σ.
        expression: [..., 79] in σ; leading axes broadcast against identity's.
    """
    shape = model.mean + _offset(model.identity_basis, identity)
    return shape + _offset(model.expression_basis, expression)


def albedo(model: MorphableModel, coefficients: Array) -> Array:
    """Reflectance [..., V, 3] of coefficients [..., 100] in σ; not clipped, so it stays linear."""
    return model.albedo_mean + _offset(model.albedo_basis, coefficients)


def _scatter_add(values: np.ndarray, indices: np.ndarray, count: int) -> np.ndarray:
    """Sums values [F, 3] into [count, 3] by vertex index [F]."""
    columns = [np.bincount(indices, values[:, axis], count) for axis in range(3)]
    return np.stack(columns, -1)


def vertex_normals(vertices: Array, triangles: Array) -> Array:
    """Unit normals [..., V, 3] of vertices [..., V, 3], triangles weighted by their area.

    A vertex without triangles gets the zero vector.
    """
    corners = [vertices[..., triangles[:, k], :] for k in range(3)]
    if isinstance(vertices, jax.Array):
        face = jnp.cross(corners[1] - corners[0], corners[2] - corners[0])
        total = jnp.zeros_like(vertices)
        for k in range(3):
            total = total.at[..., triangles[:, k], :].add(face)
        squared = jnp.sum(total * total, -1, keepdims=True)
        return total * jax.lax.rsqrt(jnp.maximum(squared, 1e-20))
    face = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    flat = face.reshape(-1, *face.shape[-2:])
    count = vertices.shape[-2]
    index = triangles.T.reshape(-1)
    total = np.stack([_scatter_add(np.tile(f, (3, 1)), index, count) for f in flat])
    length = np.sqrt(np.maximum(np.sum(total * total, -1, keepdims=True), 1e-20))
    return (total / length).reshape(vertices.shape).astype(vertices.dtype)


def restrict(model: MorphableModel, indices: Array) -> MorphableModel:
    """The model of only the vertices `indices` [K], in that order; it has no triangles.

    landmarks68 and lips79 name the positions in `indices`; a point that is not there is -1.
    """
    indices = np.asarray(indices)
    position = np.full(model.mean.shape[0], -1, np.int32)
    position[indices[::-1]] = np.arange(len(indices), dtype=np.int32)[::-1]
    return model.replace(
        mean=model.mean[indices],
        identity_basis=model.identity_basis[:, indices],
        expression_basis=model.expression_basis[:, indices],
        albedo_mean=model.albedo_mean[indices],
        albedo_basis=model.albedo_basis[:, indices],
        triangles=np.zeros((0, 3), np.int32),
        landmarks68=position[np.asarray(model.landmarks68)],
        lips79=position[np.asarray(model.lips79)],
        region=model.region[indices],
    )


def expression_from_weights(
    model: MorphableModel, weights: Mapping[str, float | np.ndarray]
) -> np.ndarray:
    """Expression coefficients [..., 79] (σ) of named blendshape weights (1 = the full shape).

    Args:
        model: the basis that names its expressions.
        weights: {name: scalar or array [...]}; names that are left out are 0.

    Raises:
        KeyError: a name that the model does not have.
        UserError: the model names no expressions at all.
    """
    if not model.expression_names:
        raise UserError(
            f"the expressions of {model.name} have no names: {', '.join(weights)} cannot be set; "
            "use procedural or ict"
        )
    leading = np.broadcast_shapes(*(np.shape(value) for value in weights.values()))
    coefficients = np.zeros((*leading, EXPRESSION_DIM), np.float32)
    position = {name: k for k, name in enumerate(model.expression_names)}
    for name, value in weights.items():
        coefficients[..., position[name]] = np.asarray(value) / EXPRESSION_STD
    return coefficients
