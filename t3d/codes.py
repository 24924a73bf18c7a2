"""The codes of a head, the paper's I (Eq. 1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

WIDTHS = {
    "identity": 100,
    "expression_speech": 79,
    "expression_style": 79,
    "albedo": 100,
    "illumination": 27,
}


@struct.dataclass
class HeadCodes:
    """What a head is, in units of each basis vector's standard deviation (the paper, Eq. 1).

    Attributes:
        identity: [..., 100] shape of the person (f_id).
        expression_speech: [..., 79] movement that carries the speech content (f_exp-aud).
        expression_style: [..., 79] movement that belongs to the speaker's style (f_exp-style).
        albedo: [..., 100] skin reflectance (f_alb).
        illumination: [..., 27] spherical harmonics, [9, 3] flattened (f_illu).
    """

    identity: jax.Array
    expression_speech: jax.Array
    expression_style: jax.Array
    albedo: jax.Array
    illumination: jax.Array

    def shape_codes(self) -> jax.Array:
        """[..., 258]: what moves the surface, so what density depends on."""
        return jnp.concatenate(
            [self.identity, self.expression_speech, self.expression_style], axis=-1
        )

    def appearance_codes(self) -> jax.Array:
        """[..., 127]: what only colours the surface (HeadNeRF's split)."""
        return jnp.concatenate([self.albedo, self.illumination], axis=-1)


def zeros(leading: tuple[int, ...] = ()) -> HeadCodes:
    """The mean head, with the given leading axes."""
    return HeadCodes(**{name: jnp.zeros((*leading, width)) for name, width in WIDTHS.items()})
