"""The 3DMM encoder network: a face crop -> its codes (the paper II-A; used in II-B on Lip-wav)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t3d import codes
from t3d.camera import FRONTAL, project, recorded, rigid, rotation_matrix, transform
from t3d.prior import morphable
from t3d.prior.morphable import MorphableModel

CODES = ("expression", "identity", "albedo", "illumination")
POINTS = 147
FACING = (0.0, 0.0, 0.0, 0.5, 0.5, 0.5)  # about the pose of a frontal head in its crop
# Of the whole crop and, finer, of where its mouth is: (× width, kernel, stride) of each layer.
LAYERS = ((1, 7, 4), (1, 3, 1), (2, 3, 2), (2, 3, 1), (2, 3, 2))
MOUTH_LAYERS = ((1, 5, 2), (2, 3, 2), (2, 3, 2))
MOUTH = (slice(48, 92), slice(24, 72))  # rows and columns
INNER_LIPS = np.array([[61, 62, 63], [67, 66, 65]])  # of the 68 landmarks: upper, lower
WEIGHTS = {
    "expression": 1.0,
    "identity": 0.1,
    "albedo": 0.1,
    "illumination": 0.1,
    "pose": 10.0,
    "points": 2000.0,
    "marks": 2000.0,
}
LANDMARKS = ("points", "marks")


class PriorEncoder(nn.Module):
    """Face crop [B, 96, 96, 3] in [0, 1] -> 3DMM codes, pose and landmarks.

    Attributes:
        width: channels of the first block, a multiple of 8.
        dropout: share of the last features dropped while training.
    """

    width: int = 48
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, face: jax.Array, deterministic: bool = True) -> dict[str, jax.Array]:
        """Encodes faces.

        The mouth is looked at twice: its opening changes by a pixel or two of the crop.

        Returns:
            expression [B, 79], identity [B, 100], albedo [B, 100] (σ), illumination [B, 27],
            pose [B, 6] as `pose_vector` has it, points [B, 147, 2]: 68 + 79 landmarks as
            fractions of the crop.
        """
        x = face.astype(self.dtype) * 2 - 1
        rows, columns = MOUTH
        x = jnp.concatenate(
            [self._look(x, LAYERS), self._look(x[:, rows, columns], MOUTH_LAYERS)], 1
        )
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
        x = nn.gelu(nn.Dense(4 * self.width, dtype=self.dtype)(x))

        def head(name: str, size: int) -> jax.Array:
            init = nn.initializers.normal(0.01)
            return nn.Dense(size, kernel_init=init, dtype=self.dtype, name=name)(x).astype(
                jnp.float32
            )

        return {
            "expression": head("expression", codes.WIDTHS["expression_speech"]),
            "identity": head("identity", codes.WIDTHS["identity"]),
            "albedo": head("albedo", codes.WIDTHS["albedo"]),
            "illumination": head("illumination", codes.WIDTHS["illumination"]),
            "pose": jnp.array(FACING) + head("pose", 6),
            "points": 0.5 + head("points", POINTS * 2).reshape(-1, POINTS, 2),
        }

    def _look(self, x: jax.Array, layers: tuple[tuple[int, int, int], ...]) -> jax.Array:
        """Convolutions [B, h, w, 3] -> [B, features]."""
        for features, kernel, stride in layers:
            y = nn.Conv(
                features * self.width, (kernel, kernel), (stride, stride), dtype=self.dtype
            )(x)
            y = nn.GroupNorm(
                num_groups=None, group_size=8, use_fast_variance=False, dtype=self.dtype
            )(y)
            x = nn.gelu(y + x if y.shape == x.shape else y)
        return x.reshape(x.shape[0], -1)


def pose_vector(head_to_world: jax.Array, intrinsics: jax.Array, face_box: jax.Array) -> jax.Array:
    """A head's pose as its crop shows it: what no shift of the crop's frame can hide.

    Args:
        head_to_world: [..., 4, 4] (cm), less than 90° away from frontal.
        intrinsics: [..., 4]; face_box: [..., 3] (cx, cy, side), fractions of the image side.

    Returns:
        [..., 6]: axis · sin(angle) away from frontal (3), where the head's origin is seen (2) and
        how large ten centimetres are there (1), in fractions of the crop. `pose_matrix` undoes it.
    """
    turn = head_to_world[..., :3, :3] @ FRONTAL
    sine = jnp.stack(
        [
            turn[..., 2, 1] - turn[..., 1, 2],
            turn[..., 0, 2] - turn[..., 2, 0],
            turn[..., 1, 0] - turn[..., 0, 1],
        ],
        -1,
    )
    origin = head_to_world[..., :3, 3]
    seen = intrinsics[..., :2] * origin[..., :2] / origin[..., 2:] + intrinsics[..., 2:]
    place = (seen - face_box[..., :2]) / face_box[..., 2:] + 0.5
    size = 10 * intrinsics[..., :1] / (origin[..., 2:] * face_box[..., 2:])
    return jnp.concatenate([sine / 2, place, size], -1)


def pose_matrix(pose: jax.Array, intrinsics: jax.Array, face_box: jax.Array) -> jax.Array:
    """The head_to_world [..., 4, 4] (cm) of `pose_vector`s [..., 6]; its other arguments alike."""
    sine, place, size = pose[..., :3], pose[..., 3:5], pose[..., 5:]
    z = 10 * intrinsics[..., :1] / (jnp.maximum(size, 1e-2) * face_box[..., 2:])
    seen = (place - 0.5) * face_box[..., 2:] + face_box[..., :2]
    xy = (seen - intrinsics[..., 2:]) * z / intrinsics[..., :2]
    return rigid(_rotation(sine) @ FRONTAL, jnp.concatenate([xy, z], -1))


def _rotation(sine: jax.Array) -> jax.Array:
    """Rotations [..., 3, 3] under 90° of axis · sin(angle) [..., 3]; smooth at 0."""
    squared = jnp.minimum(jnp.sum(sine**2, -1), 0.98)[..., None, None]
    x, y, z = sine[..., 0], sine[..., 1], sine[..., 2]
    zero = jnp.zeros_like(x)
    cross = jnp.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1)
    cross = cross.reshape(*sine.shape[:-1], 3, 3)
    return jnp.eye(3) + cross + cross @ cross / (1 + jnp.sqrt(1 - squared))


def marks_basis(model: MorphableModel) -> np.ndarray:
    """[180, 147 · 3]: the 68 + 79 landmarks (cm) of the mean head, of each identity vector, and of
    each expression vector: what codes [1, identity, expression] are multiplied by."""
    marks = morphable.restrict(model, np.concatenate([model.landmarks68, model.lips79]))
    rows = [marks.mean[None], marks.identity_basis, marks.expression_basis]
    return np.concatenate(rows).reshape(-1, POINTS * 3).astype(np.float32)


def seen_marks(
    basis: jax.Array, codes: dict[str, jax.Array], intrinsics: jax.Array, face_box: jax.Array
) -> jax.Array:
    """Where the 3DMM has its landmarks under some codes and pose.

    Args:
        basis: of `marks_basis`; codes: identity [B, 100], expression [B, 79] and pose [B, 6].
        intrinsics: [B, 4]; face_box: [B, 3].

    Returns:
        [B, 147, 2] fractions of the crop.
    """
    one = jnp.ones_like(codes["identity"][:, :1])
    flat = jnp.concatenate([one, codes["identity"], codes["expression"]], 1)
    points = jnp.matmul(flat, basis, precision="highest")
    world = transform(
        pose_matrix(codes["pose"], intrinsics, face_box), points.reshape(-1, POINTS, 3)
    )
    seen, _ = project(recorded(intrinsics), world)
    return in_crop(seen, face_box)


def lip_gaps(points: jax.Array) -> jax.Array:
    """[B, 3, 2] from the upper to the lower inner lip, of landmarks [B, 68 or more, 2]."""
    upper, lower = INNER_LIPS
    return points[:, lower] - points[:, upper]


def in_crop(points: jax.Array, face_box: jax.Array) -> jax.Array:
    """Points [B, N, 2] in fractions of the image, in fractions of the crop face_box [B, 3]."""
    return (points - face_box[:, None, :2]) / face_box[:, None, 2:] + 0.5


def in_image(points: jax.Array, face_box: jax.Array) -> jax.Array:
    """Points [B, N, 2] in fractions of the crop face_box [B, 3], in fractions of the image."""
    return face_box[:, None, :2] + (points - 0.5) * face_box[:, None, 2:]


def roll_heads(head_to_world: jax.Array, angle: jax.Array) -> jax.Array:
    """Poses [B, 4, 4] as images rolled by angles [B] show them (`roll_points`)."""
    axis = jnp.stack([jnp.zeros_like(angle), jnp.zeros_like(angle), angle], -1)
    return rigid(rotation_matrix(axis), jnp.zeros((len(angle), 3))) @ head_to_world


def roll_points(points: jax.Array, angle: jax.Array, intrinsics: jax.Array) -> jax.Array:
    """Points [B, N, 2] of images rolled by angles [B] (radians, clockwise) about the optical axis;
    all in fractions of the image, intrinsics [B, 4]."""
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    turn = jnp.stack([jnp.stack([cosine, sine], -1), jnp.stack([-sine, cosine], -1)], -2)
    middle = intrinsics[:, None, 2:]
    return (points - middle) @ turn + middle


def recrop(
    faces: jax.Array, heads: dict[str, jax.Array], other: jax.Array, angle: jax.Array
) -> jax.Array:
    """Crops as they would be cut from rolled images by other boxes.

    Args:
        faces: [B, s, s, 3] in [0, 1]; heads: their face_box [B, 3] and intrinsics [B, 4].
        other: boxes [B, 3] in the rolled images; angle: [B] radians (`roll_points`).

    Returns:
        [B, s, s, 3], bilinear; white where nothing is known.
    """
    side = faces.shape[1]
    at = (jnp.arange(side) + 0.5) / side
    grid = jnp.stack(jnp.meshgrid(at, at), -1).reshape(1, -1, 2)
    source = in_crop(
        roll_points(in_image(grid, other), -angle, heads["intrinsics"]), heads["face_box"]
    )

    def sample(face: jax.Array, uv: jax.Array) -> jax.Array:
        place = [uv[:, 1] * side - 0.5, uv[:, 0] * side - 0.5]
        channel = lambda plane: jax.scipy.ndimage.map_coordinates(  # noqa: E731
            plane, place, order=1, mode="constant", cval=1.0
        )
        return jax.vmap(channel, -1, -1)(face).reshape(face.shape)

    return jax.vmap(sample)(faces, source)


def encoder_loss(
    prediction: dict[str, jax.Array], target: dict[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted mean squared errors of the parts that `target` has.

    Those of landmarks (`points`, `marks`) add the gaps' between the inner lips.

    Args:
        prediction: what `PriorEncoder` returns; perhaps also marks [B, 147, 2], of `seen_marks`.
        target: any of the same names and shapes.

    Returns:
        The sum with WEIGHTS (which bring the parts to like sizes), and each part's plain error.

    Raises:
        KeyError: a target that the encoder does not predict.
    """
    errors = {
        name: jnp.mean(jnp.square(prediction[name] - value)) for name, value in target.items()
    }
    for name in (name for name in LANDMARKS if name in target):
        gaps = (lip_gaps(values[name]) for values in (prediction, target))
        errors[name] += jnp.mean(jnp.square(jnp.subtract(*gaps)))
    return sum(WEIGHTS[name] * error for name, error in errors.items()), errors
