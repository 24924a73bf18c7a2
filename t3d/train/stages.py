"""The seven stages: sync → lip → prior → speech → nerf → au → space.

Each freezes what the stages before it learned. Arrays that a stage needs beside the dataset's own
fields (codes read by earlier networks, shells, renders) are listed in its `fields` and made by
t3d/run.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t3d import convert
from t3d import talker as talkers
from t3d.camera import Camera, recorded
from t3d.nerf.head import Rendering, View
from t3d.nerf.rays import Guide
from t3d.peers import headnerf
from t3d.prior import encoder as encoders
from t3d.prior.heads import CODES
from t3d.space import action_units, standardize
from t3d.speech import lipnet, syncnet
from t3d.speech.disentangle import expression_loss, lip_distance
from t3d.talker import Motion, Talker
from t3d.train.trainer import Batch, Frozen, Stage

GUIDE = ("guide_near", "guide_far", "guide_offset", "guide_active")
NOVEL = ("novel_camera", "novel_near", "novel_far", "novel_offset", "novel_active")
NOVEL += ("novel_depth", "novel_skin", "novel_colour", "novel_painted")
RENDERED = ("rendered_face", "rendered_face_box", *(f"rendered_{name}" for name in CODES))
KNOWN = ("face_box", "intrinsics", *CODES)  # of a face, real or rendered
EMPTY_WEIGHT = 0.2  # of a random view's rays that pass the surface: more hair may be there
HAIR_WEIGHT = 0.1  # of the depth of hair, which outlines tell in a few places only
REST_OF_FACE = 0.003  # of Eq. 3 beside a cm of the lips: LipNet's sound need not tell it
LATE_MOVES = 0.85  # share of the crops' movement that is gone at the end of the training
RENDERED_WEIGHT = 0.1  # of heads that look less like the speaker than the speaker does
LIP_EXPRESSION_SCALE = 5.0  # brings lip vertices (cm) to the size of coefficients in σ


@dataclass(frozen=True)
class Facts:
    """What the stages must know of the training data.

    Attributes:
        au_prevalence: [n_au] share of training frames that show each AU (the r_i of Eq. 7).
        marks: [180, 147 · 3] what the codes do to the 3DMM's landmarks (encoder.marks_basis).
    """

    au_prevalence: np.ndarray
    marks: np.ndarray

    @property
    def lip_basis(self) -> np.ndarray:
        """[79, 79 · 3] what each expression vector does to the lips' vertices (cm)."""
        return self.marks[-79:, 68 * 3 :]


def make_stages(config: Any, talker: Talker, facts: Facts) -> dict[str, Stage]:
    """All stages of a config, in order."""
    makers = dict(
        sync=_sync, lip=_lip, prior=_prior, speech=_speech, nerf=_nerf, au=_au, space=_space
    )
    return {name: maker(config, talker, facts) for name, maker in makers.items()}


# ---- II-B: sync, lip, speech


def _sync(config: Any, talker: Talker, facts: Facts) -> Stage:
    """SyncNet, and beside it the judge, which only the metrics see."""
    nets = {"coach": talker.coach, "judge": talker.judge}

    def init(key, batch):
        return {
            name: net.init(jax.random.fold_in(key, i), batch["faces5"], batch["mel16"])
            for i, (name, net) in enumerate(nets.items())
        }

    def one(net, params, batch, key):
        keys = jax.random.split(key, 3)
        faces = batch["faces5"]
        sounds = jnp.concatenate([batch["mel16"], batch["mel16_shifted"]])
        if config.sync.augment:
            faces = augment_faces(keys[0], faces)
            sounds = lipnet.augment_mel(keys[1], sounds)
        face, sound = net.apply(params, faces, sounds, False, rngs={"dropout": keys[2]})
        n = len(faces)
        matching, shifted = (syncnet.cosine(face, s) for s in (sound[:n], sound[n:]))
        labels = jnp.repeat(jnp.array([1.0, 0.0]), n)
        bce = syncnet.sync_bce(jnp.concatenate([matching, shifted]), labels)
        contrast = syncnet.sync_contrast(face, sound)
        right = jnp.mean(matching > shifted)
        return contrast + config.sync.bce_weight * bce, right

    def loss(params, frozen, batch, key, step):
        results = {
            name: one(net, params[name], batch, jax.random.fold_in(key, i))
            for i, (name, net) in enumerate(nets.items())
        }
        aux = {f"{name}_accuracy": right for name, (_, right) in results.items()}
        return sum(value for value, _ in results.values()), aux

    fields = ("faces5", "mel16", "mel16_shifted")
    return Stage("sync", fields, init, loss, config.stages.sync, select="best")


def augment_faces(key: jax.Array, faces: jax.Array) -> jax.Array:
    """Brightness, contrast and mirror image, the same for all frames of a window [B, T, …]."""
    keys = jax.random.split(key, 3)
    shape = (faces.shape[0], *[1] * (faces.ndim - 1))
    gain = jax.random.uniform(keys[0], shape, minval=0.8, maxval=1.2)
    bias = jax.random.uniform(keys[1], shape, minval=-0.1, maxval=0.1)
    mirrored = jnp.where(jax.random.bernoulli(keys[2], 0.5, shape), faces[..., ::-1, :], faces)
    return jnp.clip(mirrored * gain + bias, 0.0, 1.0)


def _aligned_face(batch: Batch) -> jax.Array:
    """The frame's face in the pose of the identity image."""
    return lipnet.align(
        batch["face"], batch["points_face"][:, :68], batch["identity_points_face"][:, :68]
    )


def _lip(config: Any, talker: Talker, facts: Facts) -> Stage:
    """LipNet: L1 on the drawn half, and the lip synchronisation loss of Eq. 2."""

    def init(key, batch):
        return talker.lip.init(key, batch["mel"], batch["identity_face"])

    settings = config.lip

    def hear(params, mel, deaf, key):
        """The code of a sound as the decoder and `move` meet it: unless images teach the ears, one
        that has not learned from this sound, as at test time."""
        if not settings.deaf_to_images:
            return talker.lip.apply(params, mel, False, rngs={"dropout": key}, method="hear")
        heard = talker.lip.apply(params, mel, True, deaf, method="hear")
        return jax.lax.stop_gradient(heard)

    def draw(params, sound, identity):
        return talker.lip.apply(params, sound, identity, method="draw")

    def in_sync(params, frozen, batch, key):
        """Eq. 2 on a few windows of five images, of speakers that SyncNet can tell in sync."""
        few = max(1, len(batch["mel"]) // 8)
        voice = batch["voice"][:few]
        mel5 = jax.vmap(lipnet.without_voice, (1, None), 1)(batch["mel5"][:few], voice)
        identity = jnp.repeat(batch["identity_face"][:few], 5, 0)
        deaf = jnp.repeat(batch["deaf_ear"][:few], 5, 0)
        sound = hear(params, mel5.reshape(few * 5, *mel5.shape[2:]), deaf, key)
        images = draw(params, sound, identity)
        face, sound = talker.coach.apply(
            frozen["sync"]["coach"], images.reshape(few, 5, *images.shape[1:]), batch["mel16"][:few]
        )
        return jnp.mean(batch["sync_proved"][:few]) * syncnet.lip_sync_loss(face, sound)

    def off_by(said, change):
        """How far off movements [..., 79] are: the lips (cm) and, barely, the rest of the face."""
        off = said - change
        return lip_distance(off, facts.lip_basis) + REST_OF_FACE * jnp.sum(off**2, -1)

    def taught(params, mel, change, listens, key):
        """The ears' error about movements that they may hear, `listens` [E, B]."""
        options = dict(rngs={"dropout": key}, method="hear_each")
        sounds = talker.lip.apply(params, mel, False, **options)
        errors = off_by(talker.lip.apply(params, sounds, method="teach"), change)
        return jnp.sum(errors * listens) / jnp.maximum(jnp.sum(listens), 1)

    def mixed(mel, change, listens, key):
        """Sounds and movements between two of the batch (mixup, Zhang et al. 2018): a sound that
        is like none that was heard moves the lips less."""
        share = jax.random.beta(key, settings.mixup, settings.mixup, (len(mel), 1))
        share = jnp.maximum(share, 1 - share)
        blend = lambda x, share: share * x + (1 - share) * jnp.roll(x, 1, 0)  # noqa: E731
        both = listens * jnp.roll(listens, 1, 1)
        return blend(mel, share[..., None]), blend(change, share), both

    def loss(params, frozen, batch, key, step):
        keys = jax.random.split(key, 6)
        identity, voice, deaf = batch["identity_face"], batch["voice"], batch["deaf_ear"]
        mel = lipnet.without_voice(batch["mel"], voice)
        weight = lipnet.mouth_weight(batch["identity_points_face"][:, :68], settings.mouth_gain)
        sound = hear(params, mel, deaf, keys[1])
        drawn = _rows(batch, slice(max(1, round(settings.drawn * len(mel)))))
        few = len(drawn["mel"])
        image = draw(params, sound[:few], identity[:few])
        terms = {
            "reconstruction": lipnet.lip_loss(image, _aligned_face(drawn), weight[:few]),
            "sync": in_sync(params, frozen, drawn, keys[2]),
        }
        share = settings.sync_weight
        total = (1 - share) * terms["reconstruction"] + share * terms["sync"]
        if is_on(settings.code_weight):
            change = batch["expression"] - batch["mean_expression"]
            said = talker.lip.apply(params, sound, method="move")
            terms["codes"] = jnp.mean(off_by(said, change))
            listens = jnp.float32(jnp.arange(settings.ears)[:, None] != deaf)
            lesson = mel, change, listens
            if is_on(settings.mixup):
                lesson = mixed(*lesson, keys[5])
            terms["ears"] = taught(params, *lesson, keys[1])
            total += settings.code_weight * (terms["codes"] + terms["ears"])
        if is_on(settings.silence_weight) and not config.features.file:
            quiet = _rows(batch, slice(max(1, few // 4)))
            still, n = quiet["identity_face"], len(quiet["mel"])
            closed = quiet["identity_expression"] - quiet["mean_expression"]
            silence = lipnet.without_voice(lipnet.silence(keys[3], quiet["mel"]), voice[:n])
            sound = hear(params, silence, jnp.full(n, -1), keys[4])
            terms["silence"] = lipnet.lip_loss(draw(params, sound, still), still, weight[:n])
            said = talker.lip.apply(params, sound, method="move")
            terms["silence"] += jnp.mean(off_by(said, closed))
            everyone = jnp.ones((settings.ears, n))
            terms["silence"] += taught(params, silence, closed, everyone, keys[4])
            total += settings.silence_weight * terms["silence"]
        return total, terms

    def images(params, frozen, batch):
        heard = batch["mel"], batch["voice"], batch["identity_face"]
        drawn = talkers.lip_wav(talker, {"lip": params}, *heard)
        return {"truth": _aligned_face(batch), "lip_wav": drawn}

    fields = ("mel", "voice", "mel5", "mel16", "face", "points_face", "identity_face")
    fields += ("identity_points_face", "expression", "identity_expression", "sync_proved")
    fields += ("mean_expression", "deaf_ear")
    # Not the best: a few seconds of validation choose too early, while the lips still learn.
    return Stage("lip", fields, init, loss, config.stages.lip, images)


def _prior(config: Any, talker: Talker, facts: Facts) -> Stage:
    """The 3DMM encoder, on the tracker's fits of real crops, on swapped mouths and Lip-wav images,
    and on rendered heads whose codes are known."""
    settings = config.prior

    def init(key, batch):
        return talker.encoder.init(key, batch["face"])

    def lip_faces(frozen, batch, key):
        """The batch's mouths in I_id: half of them swapped, half as LipNet draws them."""
        half = len(batch["face"]) // 2 if settings.lip_wav else len(batch["face"])
        first, rest = (_rows(batch, part) for part in _parts(half))
        swapped = lipnet.oracle_lip_image(first["identity_face"], _aligned_face(first))
        if not settings.lip_wav:
            return swapped
        mel, others = lipnet.augment_mel(key, rest["mel"]), ("voice", "identity_face", "deaf_ear")
        drawn = talkers.lip_wav(talker, frozen, mel, *(rest[name] for name in others))
        return jnp.concatenate([swapped, drawn])

    def compare(said, codes, boxes, **more):
        """What the encoder says of faces in crops of `boxes`, against codes that are known."""
        intrinsics = codes["intrinsics"]
        pose = encoders.pose_vector(codes["head_to_world"], intrinsics, boxes)
        known = {name: codes[name] for name in encoders.CODES} | {"pose": pose}
        said, known = (
            one | {"marks": encoders.seen_marks(facts.marks, one, intrinsics, boxes)}
            for one in (said, known)
        )
        return encoders.encoder_loss(said, known | more)

    def loss(params, frozen, batch, key, step):
        keys = jax.random.split(key, 5)
        n = len(batch["face"])
        faces = [batch["face"], lip_faces(frozen, batch, keys[0])]
        heads = [batch, batch]
        if settings.rendered:
            heads.append(_some_rendered(batch))
            faces.append(heads[-1]["face"])
        heads = {name: jnp.concatenate([h[name] for h in heads]) for name in KNOWN}
        # Less and less; LipNet's images always lie as I_id does.
        much = 1 - LATE_MOVES * jnp.minimum(step / config.stages.prior.steps, 1)
        much = jnp.full(len(heads["face_box"]), much).at[n : 2 * n].set(0.0)
        moved, angle = move_boxes(keys[1], heads, settings.shift * much, settings.roll * much)
        faces = encoders.recrop(jnp.concatenate(faces), heads, moved, angle)
        faces = augment_faces_alone(keys[2], faces)
        said = talker.encoder.apply(params, faces, False, rngs={"dropout": keys[3]})

        rolled = heads | {"head_to_world": encoders.roll_heads(heads["head_to_world"], angle)}
        real, _, drawn = (_rows((said, rolled, moved), part) for part in _parts(n, 2 * n))
        points = encoders.in_image(batch["points_face"], batch["face_box"])
        points = encoders.roll_points(points, angle[:n], batch["intrinsics"])
        total, errors = compare(*real, points=encoders.in_crop(points, moved[:n]))
        if settings.rendered:
            more, drawn_errors = compare(*drawn)
            total += RENDERED_WEIGHT * more
            errors |= {f"rendered_{name}": error for name, error in drawn_errors.items()}
        # On a swapped or drawn mouth only what the mouth shows is asked for: the lips' vertices.
        off = (said["expression"] - heads["expression"])[: 2 * n]
        lips = jnp.mean((LIP_EXPRESSION_SCALE * (off @ facts.lip_basis)) ** 2)
        return total + lips, errors | {"lips": lips}

    fields = ("face", "face_box", "identity_face", "points_face", "identity_points_face", "mel")
    fields += ("expression", "identity", "albedo", "illumination", "head_to_world", "intrinsics")
    fields += ("voice", "deaf_ear")
    fields += RENDERED if settings.rendered else ()
    return Stage("prior", fields, init, loss, config.stages.prior, select="best")


def _parts(*borders: int) -> list[slice]:
    """A batch's rows cut at some of them."""
    edges = (0, *borders, None)
    return [slice(first, end) for first, end in zip(edges, edges[1:])]


def _rows(tree: Any, part: slice) -> Any:
    return jax.tree.map(lambda leaf: leaf[part], tree)


def _some_rendered(batch: Batch) -> Batch:
    """A third of the batch's rendered heads: more would be at the real faces' expense."""
    few = max(1, len(batch["face"]) // 3)
    some = {name.removeprefix("rendered_"): batch[name][:few] for name in RENDERED}
    some["face"] = some["face"].astype(jnp.float32) / 255
    return some | {"intrinsics": batch["intrinsics"][:few]}


def move_boxes(
    key: jax.Array, heads: Batch, shift: jax.Array, roll: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Other crops of faces, and angles by which the images that they are cut from are rolled.

    Args:
        heads: face_box [B, 3] and intrinsics [B, 4].
        shift: [B] most that a crop is moved and resized by, of its side; roll: [B] degrees.

    Returns:
        Boxes [B, 3] in the rolled images, and angles [B] in radians.
    """
    boxes, intrinsics = heads["face_box"], heads["intrinsics"]
    by = jax.random.uniform(key, (len(boxes), 4), minval=-1.0)
    angle = jnp.radians(roll) * by[:, 0]
    centre = encoders.roll_points(boxes[:, None, :2], angle, intrinsics)[:, 0]
    share = shift[:, None] * by[:, 1:]
    return jnp.concatenate([centre, boxes[:, 2:]], 1) + share * boxes[:, 2:], angle


def move_images(key: jax.Array, images: jax.Array, shift: float) -> jax.Array:
    """Images [B, s, s, 3] moved and resized by up to `shift` of their side, on white."""
    side = images.shape[1]
    by = shift * jax.random.uniform(key, (len(images), 3), minval=-1.0)

    def move(image: jax.Array, by: jax.Array) -> jax.Array:
        zoom = jnp.full(2, 1.0 + by[0])
        corner = side * (by[1:] - 0.5 * by[0])  # the middle moves by `by`
        black = jax.image.scale_and_translate(
            1.0 - image, image.shape, (0, 1), zoom, corner, "linear", antialias=False
        )
        return 1.0 - black

    return jax.vmap(move)(images, by)


def augment_faces_alone(key: jax.Array, faces: jax.Array) -> jax.Array:
    """Brightness, contrast and blur of single faces [B, H, W, 3]; nothing that moves a point."""
    keys = jax.random.split(key, 3)
    shape = (len(faces), 1, 1, 1)
    gain = jax.random.uniform(keys[0], shape, minval=0.85, maxval=1.15)
    bias = jax.random.uniform(keys[1], shape, minval=-0.07, maxval=0.07)
    half = jax.image.resize(faces, (len(faces), 48, 48, 3), "linear")
    soft = jax.image.resize(half, faces.shape, "linear")
    share = jax.random.uniform(keys[2], shape)
    return jnp.clip((share * soft + (1 - share) * faces) * gain + bias, 0.0, 1.0)


def _speech(config: Any, talker: Talker, facts: Facts) -> Stage:
    """StyleNet and FuseNet: Eq. 3, and the same on the lips' vertices."""

    settings = config.speech
    with_quiet = settings.silence and not config.features.file  # how features hear it is unknown

    def init(key, batch):
        keys = jax.random.split(key)
        codes = batch["lip_codes"]
        return {
            "style": talker.style.init(keys[0], batch["mel"], batch["identity"]),
            "fuse": talker.fuse.init(keys[1], codes, codes),
        }

    def with_silence(batch, key):
        """The batch's sounds, codes of Lip-wav and expressions, and after them some of silence."""
        mel = batch["mel"]
        if settings.augment:
            mel = lipnet.augment_mel(key, mel)
        names = ("identity", "lip_codes", "expression")
        if not with_quiet:
            return mel, *(batch[name] for name in names)
        quiet = lipnet.silence(jax.random.fold_in(key, 1), mel[::4])
        still = (batch[name][::4] for name in ("identity", "silent_codes", "identity_expression"))
        pairs = zip((batch[name] for name in names), still)
        return jnp.concatenate([mel, quiet]), *(jnp.concatenate(pair) for pair in pairs)

    def loss(params, frozen, batch, key, step):
        keys = jax.random.split(key, 4)
        mel, identity, speech, target = with_silence(batch, keys[0])
        # Manner must be heard, not looked up: the identity code of somebody else in the batch.
        other = jax.random.bernoulli(keys[3], settings.swap, (len(mel), 1))
        identity = jnp.where(other, jnp.roll(identity, 1, 0), identity)
        mel = jnp.where(talker.inputs == "speech", 0.0, mel)
        style = talker.style.apply(params["style"], mel, identity, False, rngs={"dropout": keys[1]})
        speech, style = talkers.admitted(talker, speech, style)
        expression = talker.fuse.apply(
            params["fuse"], speech, style, False, rngs={"dropout": keys[2]}
        )
        error = expression_loss(expression, target)
        lips = jnp.mean(lip_distance(expression - target, facts.lip_basis))
        small = jnp.mean(style**2)
        total = error + settings.lip_weight * lips + settings.style_weight * small
        # What moves the lips is f_exp-aud, where there is one.
        if is_on(settings.leak_weight) and talker.inputs != "entire":
            moved = jnp.mean(lip_distance(expression - speech, facts.lip_basis))
            total += settings.leak_weight * moved
        return total, {"expression": error, "lips": lips}

    fields = ("mel", "identity", "lip_codes", "expression")
    fields += ("silent_codes", "identity_expression") if with_quiet else ()
    return Stage("speech", fields, init, loss, config.stages.speech, select="best")


# ---- II-C: nerf


def view_of(batch: Batch) -> View:
    """The recorded view of a batch's frames, with its baked guide."""
    guide = Guide(*(batch[name] for name in GUIDE))
    return View(recorded(batch["intrinsics"]), batch["head_to_world"], guide)


def novel_view_of(batch: Batch) -> View:
    """A random view of a batch's frames."""
    guide = Guide(*(batch[f"novel_{name}"] for name in ("near", "far", "offset", "active")))
    camera = Camera(batch["intrinsics"], batch["novel_camera"])
    return View(camera, batch["head_to_world"], guide)


def novel_rays(rays: int) -> int:
    """Rays per side of a random view."""
    return max(min(8, rays), rays // 2)


def is_on(weight: Any) -> bool:
    """Whether a term counts; one whose weight is traced does (t3d/population.py sees to it)."""
    return isinstance(weight, jax.core.Tracer) or bool(weight)


def looks_from_elsewhere(nerf: Any) -> bool:
    """Whether the field also learns what random cameras would see."""
    return is_on(nerf.geometry_weight) or is_on(nerf.paint_weight)


def training_motion(
    config: Any, talker: Talker, frozen: Frozen, batch: Batch, key: jax.Array
) -> Motion:
    """The codes that drive the field in training: f_exp-aud from LipNet, or from real lips."""
    real = jax.random.bernoulli(key, config.nerf.oracle, (len(batch["mel"]), 1))
    speech = jnp.where(real, batch["oracle_codes"], batch["lip_codes"])
    style = talkers.style_codes(talker, frozen, batch["mel"], batch["identity"])
    return talkers.fuse(talker, frozen, speech, style)


def _codes(motion: Motion, batch: Batch):
    return talkers.head_codes(motion, batch["identity"], batch["albedo"], batch["illumination"])


def mouth_map(points68: jax.Array, size: int) -> jax.Array:
    """[B, size, size, 1]: a Gaussian over the mouth, 1 in its middle."""
    centre = points68[:, 48:68].mean(1)
    half = 0.5 * jnp.linalg.norm(points68[:, 54] - points68[:, 48], axis=-1)
    at = (jnp.arange(size) + 0.5) / size
    across = (at - centre[:, :1]) / (1.2 * half[:, None])
    down = (at - centre[:, 1:]) / half[:, None]
    return jnp.exp(-0.5 * (across[:, None, :] ** 2 + down[:, :, None] ** 2))[..., None]


def feature_weight(batch: Batch, gain: float) -> jax.Array:
    """[B, s, s, 1] of mean 1: where a face is told by, its eyes and mouth, weighs `gain` more."""
    points, size = batch["points68"], batch["image"].shape[1]
    at = (jnp.arange(size) + 0.5) / size
    spread = 0.2 * jnp.linalg.norm(points[:, 36] - points[:, 45], axis=-1)[:, None]
    total = 0.2 + batch["mask"]
    for part in (slice(36, 42), slice(42, 48), slice(48, 68)):
        centre = points[:, part].mean(1)
        across = (at - centre[:, :1]) / (1.2 * spread)
        down = (at - centre[:, 1:]) / (0.8 * spread)
        bump = jnp.exp(-0.5 * (across[:, None, :] ** 2 + down[:, :, None] ** 2))
        total += gain * bump[..., None]
    return total / total.mean((1, 2, 3), keepdims=True)


def from_elsewhere(seen: Rendering, batch: Batch, l1_weight: float) -> dict[str, jax.Array]:
    """Heads at random cameras against the 3DMM: terms of silhouette, depth and, of images, paint.

    The surface has the hair that the masks' outlines show. Rays that pass it are held empty with a
    small weight: recorded views say where more hair is, and nothing else may float. Its colours are
    those of `prior.paint`; mouths and eyes, which move, have none.

    Args:
        seen: image [B, F k, F k, 3] (or None), alpha, depth [B, F, F]; batch: novel_… [B, F²],
        novel_colour uint8 [B, F², 3].
    """
    depth, skin, active = (batch[f"novel_{name}"] for name in ("depth", "skin", "active"))
    rays = depth.shape[1]
    alpha, found = seen.alpha.reshape(-1, rays), seen.depth.reshape(-1, rays)
    hit = (depth > 0) & active

    def mean(weight: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.sum(weight * value) / jnp.maximum(weight.sum(), 1.0)

    off = jnp.where(hit, found - depth, 0.0)
    terms = {
        "silhouette": mean(jnp.where(hit, 1.0, EMPTY_WEIGHT) * active, (hit - alpha) ** 2),
        "depth": mean(hit * jnp.where(skin, 1.0, HAIR_WEIGHT), jnp.minimum(off**2, 1.0)),
    }
    if seen.image is not None:
        side = seen.alpha.shape[1]
        image = seen.image.reshape(len(hit), side, -1, side, seen.image.shape[2] // side, 3)
        # Where our head is not, white is right: colours do not say where there is more of it.
        there = jax.lax.stop_gradient(alpha)[..., None]
        wanted = there * (batch["novel_colour"] / 255.0) + 1.0 - there
        error = image.mean((2, 4)).reshape(-1, rays, 3) - wanted
        each = jnp.mean(error**2 + l1_weight * jnp.abs(error), -1)
        terms["paint"] = mean(hit & batch["novel_painted"], each)
    return terms


def _nerf(config: Any, talker: Talker, facts: Facts) -> Stage:
    """The radiance field: Eq. 6, and what the 3D prior knows of its geometry."""
    nerf, head = config.nerf, talker.head
    few = novel_rays(nerf.rays)
    novel_head = replace(head, capacity=few**2, size=config.size * few // nerf.rays)

    def init(key, batch):
        motion = Motion(*[jnp.zeros_like(batch["expression"])] * 3)
        params = head.init(key, _codes(motion, batch), view_of(batch), batch["row"])
        if not nerf.init:
            return params
        weights = convert.load(nerf.init, "headnerf")
        given = headnerf.head_params(weights, nerf.latent, nerf.code_scale, nerf.unit)
        return headnerf.put(params, given)

    def loss(params, frozen, batch, key, step):
        keys = jax.random.split(key)
        motion = training_motion(config, talker, frozen, batch, keys[0])
        codes = _codes(motion, batch)
        seen = head.apply(params, codes, view_of(batch), batch["row"], keys[1])
        error = seen.image - batch["image"]
        weight = 0.3 + batch["mask"] + nerf.mouth_weight * mouth_map(batch["points68"], config.size)
        weight = weight if is_on(nerf.mouth_weight) else jnp.ones_like(batch["mask"])
        terms = {"photometric": jnp.mean(weight * error**2)}
        total = terms["photometric"]
        total += nerf.l1_weight * jnp.mean(weight * jnp.abs(error))
        total += nerf.gradient_weight * standardize.gradient_difference(seen.image, batch["image"])
        mask = jax.image.resize(batch["mask"][..., 0], seen.alpha.shape, "linear")
        terms["mask"] = jnp.mean((seen.alpha - mask) ** 2)
        total += nerf.mask_weight * terms["mask"]
        if looks_from_elsewhere(nerf):
            painted = is_on(nerf.paint_weight)
            novel = novel_head.apply(
                params, codes, novel_view_of(batch), image=painted, rows=batch["rows"]
            )
            terms |= from_elsewhere(novel, batch, nerf.l1_weight)
            total += nerf.geometry_weight * (terms["silhouette"] + terms["depth"])
            if painted:
                total += nerf.paint_weight * terms["paint"]
        if nerf.latent:
            latents = params["params"]["latents"][batch["row"]]
            total += nerf.latent_weight * jnp.mean(latents**2)
        psnr = -10 * jnp.log10(jnp.mean(error**2))
        return total, terms | {"psnr": psnr}

    def images(params, frozen, batch):
        speech = batch["lip_codes"]
        style = talkers.style_codes(talker, frozen, batch["mel"], batch["identity"])
        motion = talkers.fuse(talker, frozen, speech, style)
        seen = head.apply(params, _codes(motion, batch), view_of(batch), rows=batch["rows"])
        return {"truth": batch["image"], "render": seen.image}

    fields = ("image", "mask", "points68", "mel", "expression", "identity", "albedo")
    fields += ("illumination", "intrinsics", "head_to_world", "lip_codes", "oracle_codes")
    fields += ("row", "rows")
    fields += GUIDE + (NOVEL if looks_from_elsewhere(nerf) else ())
    return Stage("nerf", fields, init, loss, config.stages.nerf, images)


# ---- II-D: au, space


def _au(config: Any, talker: Talker, facts: Facts) -> Stage:
    """The AU encoder: Eq. 7 + Eq. 8 on real frames."""
    prevalence = jnp.asarray(facts.au_prevalence)

    def init(key, batch):
        return talker.au.init(key, batch["image"])

    def loss(params, frozen, batch, key, step):
        image = augment_faces(key, batch["image"])
        if config.au.shift:
            image = move_images(jax.random.fold_in(key, 1), image, config.au.shift)
        _, logits = talker.au.apply(params, image)
        right = jnp.mean((logits > 0) == (batch["au"] > 0.5))
        loss = action_units.au_loss(logits, batch["au"], prevalence, config.au.even)
        return loss, {"accuracy": right}

    return Stage("au", ("image", "au"), init, loss, config.stages.au, select="best")


def _space(config: Any, talker: Talker, facts: Facts) -> Stage:
    """Codebooks and decoder: Eq. 11 on real frames and on the field's renders of them."""
    settings = config.space

    def standardise(params, frozen, image):
        return talkers.standardise(talker, {**frozen, "space": params}, image)

    def init(key, batch):
        features, _ = talker.au.init_with_output(key, batch["image"])[0]
        return talker.space.init(key, batch["image"], features)

    def loss(params, frozen, batch, key, step):
        chosen = jax.random.bernoulli(key, settings.renders, batch["has_render"].shape)
        rendered = (chosen & batch["has_render"])[:, None, None, None]
        given = jnp.where(rendered, batch["render"] / 255.0, batch["image"])
        output, found = standardise(params, frozen, given)
        gain = settings.feature_weight
        weight = feature_weight(batch, gain) if is_on(gain) else None
        total, terms = standardize.space_loss(
            output,
            batch["image"],
            found,
            settings.beta_au,
            settings.beta_global,
            settings.gradient_weight,
            weight,
            codebook_weight=0.0 if settings.ema else 1.0,
        )
        return total, terms | {"found": found}

    def after_step(params, aux, key):
        return standardize.restart_codes(params, aux["found"], key, settings.ema)

    def images(params, frozen, batch):
        output, _ = standardise(params, frozen, batch["image"])
        return {"truth": batch["image"], "standardised": output}

    fields = ("image", "mask", "points68", "render", "has_render")
    return Stage("space", fields, init, loss, config.stages.space, images, after_step=after_step)
