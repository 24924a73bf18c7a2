"""Fig. 1 as functions: audio → codes → head → standardised head.

Training and inference both call these, so they cannot differ. `params` is a dict by stage name:
sync {coach, judge}, lip, prior, speech {style, fuse}, nerf, au, space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from t3d.codes import HeadCodes
from t3d.nerf.field import Field
from t3d.nerf.head import Head, Rendering, View
from t3d.prior.encoder import PriorEncoder
from t3d.space.action_units import AUEncoder
from t3d.space.standardize import Exchange, StandardizedSpace
from t3d.speech.disentangle import FuseNet, StyleNet
from t3d.speech.lipnet import LipNet, without_voice
from t3d.speech.syncnet import SyncNet

Params = dict[str, Any]
# The stages in order, and whose networks each of them (or its batches) calls.
NEEDS = {
    "sync": (),
    "lip": ("sync",),
    "prior": ("lip",),
    "speech": ("lip", "prior"),
    "nerf": ("lip", "prior", "speech"),
    "au": (),
    "space": ("lip", "prior", "speech", "nerf", "au"),
}
STAGES = tuple(NEEDS)
HEARING = tuple(n for n in STAGES if "lip" in (n, *NEEDS[n]))  # LipNet's and StyleNet's features
AUDIO_INPUTS = ("disentangled", "speech", "entire")  # the rows of Table II


@dataclass(frozen=True)
class Talker:
    """The networks of Fig. 1, without their parameters.

    Attributes:
        coach: the SyncNet of Eq. 2; judge: one that no loss ever sees, for the metrics.
        inputs: which audio codes drive the head (Table II), one of AUDIO_INPUTS.
    """

    coach: SyncNet
    judge: SyncNet
    lip: LipNet
    encoder: PriorEncoder
    style: StyleNet
    fuse: FuseNet
    head: Head
    au: AUEncoder
    space: StandardizedSpace
    inputs: str


@struct.dataclass
class Motion:
    """What a sound does to a face, frame by frame.

    Attributes:
        speech: [B, 79] f_exp-aud; style: [B, 79] f_exp-style; expression: [B, 79] f_gen-exp.
    """

    speech: jax.Array
    style: jax.Array
    expression: jax.Array


def exact() -> Any:
    """A context in which products of float32 are float32 on every device.

    TPUs and tensor cores would take one pass of bfloat16. Networks of `config.dtype` bfloat16 ask
    for that themselves; what they leave in float32, the integrals among it, stays so.
    """
    return jax.default_matmul_precision("highest")


def build(config: Any, frames: int, capacity: int) -> Talker:
    """The networks that a config describes.

    Args:
        config: of a run (configs/talker.py says what is in it).
        frames: rows of the field's table of per-frame codes.
        capacity: rays evaluated per image.
    """
    dtype = jnp.dtype(config.dtype)
    nerf, space = config.nerf, config.space
    field = Field(
        width=nerf.width,
        depth=nerf.depth,
        skip=nerf.skip,
        features=nerf.features,
        encoding=nerf.encoding,
        octaves=nerf.octaves,
        resolutions=tuple(nerf.resolutions),
        channels=nerf.channels,
        dtype=dtype,
        colour=nerf.colour,
        pi=nerf.pi,
        unit=nerf.unit,
        code_scale=nerf.code_scale,
        density=nerf.density,
        looks=nerf.looks,
    )
    head = Head(
        field,
        config.size,
        nerf.samples,
        frames,
        nerf.latent,
        capacity,
        points=nerf.points,
        backdrop=nerf.backdrop,
        rays=nerf.rays,
        spread=nerf.spread,
        chunk=nerf.chunk,
        remat=nerf.remat,
    )
    return Talker(
        coach=SyncNet(config.sync.width, config.sync.dim, dtype=dtype),
        judge=SyncNet(config.sync.judge_width, config.sync.dim, dtype=dtype),
        lip=LipNet(
            config.lip.width,
            config.lip.bottleneck,
            config.lip.dropout,
            config.lip.ears,
            dtype=dtype,
        ),
        encoder=PriorEncoder(config.prior.width, dtype=dtype),
        style=StyleNet(config.speech.width, config.speech.dropout, dtype=dtype),
        fuse=FuseNet(config.speech.width, config.speech.dropout, dtype=dtype),
        head=head,
        au=AUEncoder(
            len(config.au.units), config.au.dim, config.au.width, crop=config.au.crop, dtype=dtype
        ),
        space=StandardizedSpace(
            n_au=len(config.au.units),
            dim=config.au.dim,
            au_codes=space.au_codes,
            global_codes=space.global_codes,
            width=space.width,
            patch=space.patch,
            use_au=space.use_au,
            use_global=space.use_global,
            dtype=dtype,
        ),
        inputs=config.speech.inputs,
    )


def lip_wav(
    talker: Talker,
    params: Params,
    mel: jax.Array,
    voice: jax.Array,
    identity_face: jax.Array,
    deaf: jax.Array | None = None,
) -> jax.Array:
    """Lip-wav images [B, 96, 96, 3] of sound [B, S, 80] on identity images [B or 1, 96, 96, 3].

    Args:
        voice: [B or 1, 2, 80] mean and deviation of the whole sound's bands (`features.voice_of`).
        deaf: [B] of training frames, the ear that has not learned from them (`LipNet.hear`).
    """
    mel = without_voice(mel, voice)
    sound = talker.lip.apply(params["lip"], mel, True, deaf, method="hear")
    return talker.lip.apply(params["lip"], sound, identity_face, method="draw")


def read_expression(talker: Talker, params: Params, face: jax.Array) -> jax.Array:
    """Expression [B, 79] (σ) that the 3DMM encoder sees in face crops [B, 96, 96, 3]."""
    return talker.encoder.apply(params["prior"], face)["expression"]


def speech_codes(
    talker: Talker,
    params: Params,
    mel: jax.Array,
    voice: jax.Array,
    identity_face: jax.Array,
    deaf: jax.Array | None = None,
) -> jax.Array:
    """f_exp-aud [B, 79]: the expression of the Lip-wav images of a sound (II-B); as `lip_wav`."""
    images = lip_wav(talker, params, mel, voice, identity_face, deaf)
    return read_expression(talker, params, images)


def style_codes(talker: Talker, params: Params, mel: jax.Array, identity: jax.Array) -> jax.Array:
    """f_exp-style [B, 79] of sound [B, S, 80] and the speaker's identity code [B, 100]."""
    return talker.style.apply(params["speech"]["style"], mel, identity)


def admitted(talker: Talker, speech: jax.Array, style: jax.Array) -> tuple[jax.Array, jax.Array]:
    """f_exp-aud and f_exp-style as the run's audio input admits them (Table II).

    'disentangled' takes both; 'speech' sets the style to zero; 'entire' leaves all to the network
    that hears the whole sound and sets f_exp-aud to zero.
    """
    speech = jnp.zeros_like(speech) if talker.inputs == "entire" else speech
    style = jnp.zeros_like(style) if talker.inputs == "speech" else style
    return speech, style


def fuse(
    talker: Talker,
    params: Params,
    speech: jax.Array,
    style: jax.Array,
) -> Motion:
    """FuseNet on the codes that the run's audio input admits."""
    speech, style = admitted(talker, speech, style)
    expression = talker.fuse.apply(params["speech"]["fuse"], speech, style)
    return Motion(speech=speech, style=style, expression=expression)


def drive(
    talker: Talker,
    params: Params,
    mel: jax.Array,
    voice: jax.Array,
    identity: jax.Array,
    identity_face: jax.Array,
) -> Motion:
    """Sound to motion, the whole of II-B.

    Args:
        mel: [B, S, 80] (or features in its place, [B, S, D]), one window a frame; voice:
            [B or 1, 2, 80] of the whole sound; identity: [B, 100]; identity_face: [B or 1, 96, 96,
            3], one for all frames of one speaker, which is quicker.
    """
    return fuse(
        talker,
        params,
        speech_codes(talker, params, mel, voice, identity_face),
        style_codes(talker, params, mel, identity),
    )


def head_codes(
    motion: Motion, identity: jax.Array, albedo: jax.Array, illumination: jax.Array
) -> HeadCodes:
    """The codes I of Eq. 1 of a speaker [B, …] in motion."""
    return HeadCodes(
        identity=identity,
        expression_speech=motion.speech,
        expression_style=motion.style,
        albedo=albedo,
        illumination=illumination,
    )


def render(
    talker: Talker,
    params: Params,
    codes: HeadCodes,
    view: View,
    frame: jax.Array | None = None,
    key: jax.Array | None = None,
    rows: jax.Array | None = None,
) -> Rendering:
    """The head F̂ as the radiance field sees it (Eq. 4 and 5); arguments as of `Head`."""
    return talker.head.apply(params["nerf"], codes, view, frame, key, rows=rows)


def standardise(
    talker: Talker, params: Params, image: jax.Array, exchange: Exchange | None = None
) -> tuple[jax.Array, dict]:
    """Images [B, s, s, 3] through the local and the global space: F̂+ (II-D), and the codes used.

    Args:
        exchange: what is decoded in place of the codes (`StandardizedSpace`).
    """
    features, _ = talker.au.apply(params["au"], image)
    return talker.space.apply(params["space"], image, features, exchange)
