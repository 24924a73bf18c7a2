"""The 3DMM encoder network: a face crop -> its codes (the paper II-A; used in II-B on Lip-wav)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d import codes
from t3d.camera import FRONTAL

POINTS = 147
WEIGHTS = {
    "expression": 1.0,
    "identity": 0.1,
    "albedo": 0.1,
    "illumination": 0.1,
    "pose": 10.0,
    "points": 2000.0,
}


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

        Returns:
            expression [B, 79], identity [B, 100], albedo [B, 100] (σ), illumination [B, 27],
            pose [B, 6] as `pose_vector` has it, points [B, 147, 2]: 68 + 79 landmarks as
            fractions of the crop.
        """
        x = face.astype(self.dtype) * 2 - 1
        for features, kernel, stride in ((1, 7, 4), (1, 3, 1), (2, 3, 2), (2, 3, 1), (2, 3, 2)):
            y = nn.Conv(
                features * self.width, (kernel, kernel), (stride, stride), dtype=self.dtype
            )(x)
            y = nn.GroupNorm(
                num_groups=None, group_size=8, use_fast_variance=False, dtype=self.dtype
            )(y)
            x = nn.gelu(y + x if y.shape == x.shape else y)
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x.reshape(x.shape[0], -1))
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
            "pose": head("pose", 6),
            "points": 0.5 + head("points", POINTS * 2).reshape(-1, POINTS, 2),
        }


def pose_vector(head_to_world: jax.Array) -> jax.Array:
    """Rigid motions [..., 4, 4] (cm) -> [..., 6]: axis · sin(angle) away from frontal, metres."""
    turn = head_to_world[..., :3, :3] @ FRONTAL
    sine = jnp.stack(
        [
            turn[..., 2, 1] - turn[..., 1, 2],
            turn[..., 0, 2] - turn[..., 2, 0],
            turn[..., 1, 0] - turn[..., 0, 1],
        ],
        -1,
    )
    return jnp.concatenate([sine / 2, head_to_world[..., :3, 3] / 100], -1)


def encoder_loss(
    prediction: dict[str, jax.Array], target: dict[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted mean squared errors of the parts that `target` has.

    Args:
        prediction: what `PriorEncoder` returns.
        target: any of the same names and shapes.

    Returns:
        The sum with WEIGHTS (which bring the parts to like sizes), and each part's plain error.

    Raises:
        KeyError: a target that the encoder does not predict.
    """
    errors = {
        name: jnp.mean(jnp.square(prediction[name] - value)) for name, value in target.items()
    }
    return sum(WEIGHTS[name] * error for name, error in errors.items()), errors
