"""The losses that the stages put together, against their equations written out."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t3d import planning
from t3d import run as runs
from t3d import talker as talkers
from t3d.config import load_config
from t3d.errors import UserError
from t3d.prior import basis
from t3d.prior import encoder as encoders
from t3d.train import stages

BATCH, RAYS, SIZE = 2, 16, 32


def made(*overrides):
    config = load_config("tiny", list(overrides))
    talker = talkers.build(config, frames=4, capacity=RAYS**2)
    return config, talker, stages.Facts(np.full(5, 0.3), np.zeros((180, 147 * 3)))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    pose = np.diag([1.0, -1, -1, 1]).astype(np.float32)
    pose[2, 3] = 60
    near = np.full((BATCH, RAYS**2), 55, np.float32)
    values = {
        "image": rng.uniform(size=(BATCH, SIZE, SIZE, 3)),
        "mask": np.ones((BATCH, SIZE, SIZE, 1)),
        "points68": rng.uniform(0.3, 0.7, (BATCH, 68, 2)),
        "mel": rng.normal(size=(BATCH, 16, 80)),
        "mel5": rng.normal(size=(BATCH, 5, 16, 80)),
        "mel16": rng.normal(size=(BATCH, 16, 80)),
        "voice": np.tile([[[0.1] * 80, [0.9] * 80]], (BATCH, 1, 1)),
        "sync_proved": np.ones(BATCH),
        "identity": rng.normal(size=(BATCH, 100)),
        "albedo": rng.normal(size=(BATCH, 100)),
        "illumination": rng.normal(size=(BATCH, 27)),
        "intrinsics": np.tile([2.0, 2, 0.5, 0.5], (BATCH, 1)),
        "head_to_world": np.tile(pose, (BATCH, 1, 1)),
        "guide_near": near,
        "guide_far": near + 10,
        "guide_offset": np.zeros((*near.shape, 3)),
        "guide_active": np.ones(near.shape, bool),
        "row": np.arange(BATCH),
        "rows": np.tile([0, BATCH], (BATCH, 1)),
    }
    values["deaf_ear"] = np.arange(BATCH)
    codes = ("expression", "lip_codes", "oracle_codes", "silent_codes", "identity_expression")
    codes += ("mean_expression",)
    values |= {name: rng.normal(size=(BATCH, 79)) for name in codes}
    return {
        n: jnp.asarray(v, jnp.float32) if v.dtype == np.float64 else v for n, v in values.items()
    }


def test_the_papers_photometric_loss_is_the_mean_squared_error_of_equation_6(batch):
    config, talker, facts = made("paper=True", "nerf.samples=4")
    stage = stages.make_stages(config, talker, facts)["nerf"]
    key = jax.random.key(0)
    params = stage.init(key, batch)
    frozen = {
        "speech": {
            "style": talker.style.init(key, batch["mel"], batch["identity"]),
            "fuse": talker.fuse.init(key, batch["lip_codes"], batch["lip_codes"]),
        }
    }
    loss, _ = stage.loss(params, frozen, batch, key, 0)
    keys = jax.random.split(key)
    motion = stages.training_motion(config, talker, frozen, batch, keys[0])
    np.testing.assert_array_equal(motion.speech, batch["lip_codes"])  # LipNet's alone
    codes = talkers.head_codes(motion, batch["identity"], batch["albedo"], batch["illumination"])
    image = talker.head.apply(params, codes, stages.view_of(batch), batch["row"], keys[1]).image
    expected = np.mean((np.asarray(image) - np.asarray(batch["image"])) ** 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "override, words",
    [
        ("au.units=(10,14)", "datasets hold labels of"),
        ("au.units=(26,25,20,14,10)", "in this order"),
        ("au.width=20", "au.width=20: must be a multiple of 8"),
        ("au.width=9", "au.width=9: must be a multiple of 4"),
        ("sync.width=12", "sync.width=12: must be a multiple"),
        ("lip.code_weight=0.0", "nothing would teach the ears"),
        ("stages.space.steps=0", "must be 1 or more"),
    ],
)
def test_values_that_no_stage_can_use_are_refused_before_the_first_step(override, words):
    with pytest.raises(UserError, match=re.escape(words)):
        runs.check_config(load_config("tiny", [override]))


@pytest.fixture(scope="module")
def faces(batch):
    """What the prior stage gets: two faces, and heads with codes beside them."""
    rng = np.random.default_rng(1)
    box = np.tile(np.float32([0.5, 0.5, 0.6]), (BATCH, 1))
    points = rng.uniform(0.2, 0.8, (BATCH, 147, 2)).astype(np.float32)
    image = rng.random((BATCH, 96, 96, 3)).astype(np.float32)
    given = batch | {"face": image, "identity_face": image[::-1], "face_box": box}
    given |= {"points_face": points, "identity_points_face": points}
    heads = {f"rendered_{name}": given[name] for name in stages.KNOWN if name != "intrinsics"}
    return given | heads | {"rendered_face": (255 * image).astype(np.uint8)}


def prior_loss(faces, *overrides):
    config, talker, facts = made(*overrides)
    facts = stages.Facts(facts.au_prevalence, encoders.marks_basis(basis.load("procedural")))
    stage = stages.make_stages(config, talker, facts)["prior"]
    key = jax.random.key(0)
    frozen = {"lip": talker.lip.init(key, faces["mel"], faces["identity_face"])}
    given = {name: faces[name] for name in stage.fields}
    params = stage.init(key, given)
    return jax.jit(stage.loss)(params, frozen, given, key, 0)


def test_the_encoders_loss_is_that_of_its_parts_and_a_little_of_rendered_heads(faces):
    total, parts = prior_loss(faces)
    names = ("expression", "identity", "albedo", "illumination", "pose", "marks")
    expected = sum(encoders.WEIGHTS[name] * parts[name] for name in (*names, "points"))
    expected += parts["lips"]
    heads = sum(encoders.WEIGHTS[name] * parts[f"rendered_{name}"] for name in names)
    np.testing.assert_allclose(total, expected + stages.RENDERED_WEIGHT * heads, rtol=1e-5)
    assert "rendered_points" not in parts  # the detector's landmarks are not quite the model's


def test_without_rendered_heads_the_encoder_wants_none(faces):
    real = {name: value for name, value in faces.items() if not name.startswith("rendered_")}
    total, parts = prior_loss(real, "prior.rendered=0")
    assert np.isfinite(total) and not any(name.startswith("rendered_") for name in parts)


def test_crops_move_by_their_share_at_most_and_not_at_all_without_one(faces):
    count = 200
    heads = {name: jnp.tile(faces[name][:1], (count, 1)) for name in ("face_box", "intrinsics")}
    shift = jnp.where(jnp.arange(count) < 100, 0.1, 0.0)
    boxes, angle = stages.move_boxes(jax.random.key(0), heads, shift, 100 * shift)
    by = np.abs(np.asarray(boxes - heads["face_box"])) / 0.6
    assert by[100:].max() == 0 and np.abs(angle[100:]).max() == 0
    assert 0.09 < by[:100].max() <= 0.1 + 1e-6
    assert np.radians(9) < np.abs(angle).max() <= np.radians(10)


def stage_of(name, faces, *overrides):
    """A stage's jitted loss, its params and those of the stages before it."""
    config, talker, facts = made(*overrides)
    facts = stages.Facts(facts.au_prevalence, encoders.marks_basis(basis.load("procedural")))
    stage, key = stages.make_stages(config, talker, facts)[name], jax.random.key(0)
    coach = talker.coach.init(key, jnp.zeros((1, 5, 96, 96, 3)), faces["mel16"][:1])
    frozen = {"sync": {"coach": coach}}
    return jax.jit(stage.loss), stage.init(key, faces), frozen


def test_the_papers_lipnet_has_reconstruction_and_equation_2_and_nothing_else(faces):
    loss, params, frozen = stage_of("lip", faces, "paper=True")
    total, terms = loss(params, frozen, faces, jax.random.key(0), 0)
    assert set(terms) == {"reconstruction", "sync"}
    np.testing.assert_allclose(total, 0.97 * terms["reconstruction"] + 0.03 * terms["sync"], 1e-5)


def test_a_syncnet_that_proved_nothing_teaches_nothing(faces):
    loss, params, frozen = stage_of("lip", faces)
    proved = loss(params, frozen, faces, jax.random.key(0), 0)[1]["sync"]
    refused = faces | {"sync_proved": jnp.zeros(BATCH)}
    assert proved > 0 and loss(params, frozen, refused, jax.random.key(0), 0)[1]["sync"] == 0


def test_an_ear_learns_nothing_of_the_frames_that_it_is_deaf_to(faces):
    loss, params, frozen = stage_of("lip", faces, "lip.ears=2", "lip.silence_weight=0")
    gradient = jax.jit(jax.grad(lambda p, given: loss(p, frozen, given, jax.random.key(0), 0)[0]))

    def lessons(deaf):
        found = gradient(params, faces | {"deaf_ear": jnp.full(BATCH, deaf)})["params"]
        return [float(optax.tree.norm(found[f"ear_{k}"])) for k in range(2)]

    assert lessons(0)[0] == 0 and lessons(0)[1] > 0
    assert lessons(1)[1] == 0 and lessons(1)[0] > 0
    assert min(lessons(-1)) > 0


def test_the_lips_are_left_to_the_speech_code_unless_the_paper_says_otherwise(faces):
    def leaks(*overrides):
        loss, params, frozen = stage_of("speech", faces, *overrides)
        bent = jax.tree.map(lambda x: x + 0.1, params["fuse"])  # moves the lips by itself
        still, moving = (
            loss(params | {"fuse": fuse}, frozen, faces, jax.random.key(0), 0)
            for fuse in (params["fuse"], bent)
        )
        eq3 = moving[1]["expression"] - still[1]["expression"]
        lips = moving[1]["lips"] - still[1]["lips"]
        return float(moving[0] - still[0] - eq3), float(lips)

    beside, lips = leaks("speech.lip_weight=0", "speech.silence=False")
    assert beside > 1.0
    for free in ("paper=True", "speech.inputs=entire"):  # without f_exp-aud style must move them
        beside, _ = leaks(free, "speech.lip_weight=0", "speech.silence=False")
        assert abs(beside) < 1e-3


def test_feature_weights_have_mean_one_and_peak_at_the_mouth(batch):
    points = np.full((1, 68, 2), 0.2, np.float32)
    points[:, 36], points[:, 45] = [0.3, 0.4], [0.7, 0.4]
    points[:, 48:68] = [0.5, 0.7]
    given = {
        "points68": jnp.asarray(points),
        "image": batch["image"][:1],
        "mask": batch["mask"][:1],
    }
    weight = np.asarray(stages.feature_weight(given, 3.0))[0, ..., 0]
    np.testing.assert_allclose(weight.mean(), 1.0, rtol=1e-5)
    mouth = weight[int(0.7 * SIZE), int(0.5 * SIZE)]
    assert mouth > 2 * np.median(weight)


def test_mouth_map_is_one_in_the_middle_of_the_mouth_and_fades():
    points = np.zeros((1, 68, 2), np.float32)
    points[:, 48:68] = [0.5, 0.75]
    points[:, 48], points[:, 54] = [0.4, 0.75], [0.6, 0.75]
    found = np.asarray(stages.mouth_map(jnp.asarray(points), SIZE))[0, ..., 0]
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert abs((row + 0.5) / SIZE - 0.75) < 0.03 and abs((column + 0.5) / SIZE - 0.5) < 0.03
    assert found.max() > 0.9 and found[2, 2] < 1e-3


@pytest.mark.parametrize(
    "override, word",
    [
        ("speech.inputs=entir", "entire"),
        ("nerf.encoding=plane", "planes"),
        ("nerf.sampling=shel", "shell"),
        ("size=40", "nerf.rays"),
        ("nerf.sampling=uniform", "geometry_weight"),
        ("nerf.sampling=uniform nerf.geometry_weight=0", "paint_weight"),
        ("lip.deaf_to_images=False", "lip.ears=1"),
        ("lip.ears=0", "1 or more"),
    ],
)
def test_a_value_that_fits_no_network_is_named_before_anything_is_written(override, word, tmp_path):
    from t3d import run
    from t3d.errors import UserError

    with pytest.raises(UserError, match=word):
        run.train(load_config("tiny", override.split()), [], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_moved_images_keep_what_they_show_and_are_white_around():
    image = np.ones((3, 32, 32, 3), np.float32)
    image[:, 12:20, 10:22] = 0.2
    key = jax.random.key(0)
    np.testing.assert_allclose(stages.move_images(key, image, 0.0), image, atol=1e-6)
    moved = np.asarray(stages.move_images(key, image, 0.2))
    places = [np.mean(np.nonzero(one[..., 0] < 0.6), 1) for one in moved]
    assert np.ptp(places, 0).max() > 1  # each by its own draw
    assert all(np.abs(place - [15.5, 15.5]).max() < 0.3 * 32 for place in places)
    assert (moved[:, 0] > 0.99).all() and moved.min() >= 0.19
    areas = (moved[..., 0] < 0.6).sum((1, 2)) / 96
    assert (areas > 0.6).all() and (areas < 1.5).all()


@pytest.mark.parametrize(
    "overrides, told",
    [
        ((), {"silhouette", "depth", "paint"}),
        (("nerf.paint_weight=0",), {"silhouette", "depth"}),
        (("nerf.geometry_weight=0",), {"silhouette", "depth", "paint"}),
        (("nerf.geometry_weight=0", "nerf.paint_weight=0"), set()),
        (("nerf.backdrop=map",), {"silhouette", "depth", "paint"}),
        (("nerf.rays=4",), {"silhouette", "depth", "paint"}),
    ],
)
def test_random_views_are_looked_at_as_the_weights_say(overrides, told):
    config = load_config("tiny", list(overrides))
    made = planning.stages_of(config, rows=4)
    state, *rest = planning.abstract_arguments(config, made, "nerf", 2)
    loss, terms = jax.eval_shape(made["nerf"].loss, state.params, *rest, state.step)
    assert loss.shape == () and {"silhouette", "depth", "paint"} & set(terms) == told


def test_random_views_ask_for_the_skins_depth_more_than_for_the_hairs_and_for_their_colours():
    """Four rays: skin, hair, past the surface, and one that meets nothing."""
    depth = jnp.array([[60.0, 58.0, 0.0, 0.0]])
    colour = np.array([[[255, 0, 51], [102, 102, 102], [255] * 3, [255] * 3]], np.uint8)
    batch = {"novel_depth": depth, "novel_colour": jnp.asarray(colour)}
    batch["novel_skin"] = jnp.array([[True, False, False, False]])
    batch["novel_active"] = jnp.array([[True, True, True, False]])
    batch["novel_painted"] = jnp.array([[True, True, True, True]])

    def terms(alpha, off, colour=colour[0] / 255, l1=0.0):
        pixels = np.kron(np.reshape(colour, (2, 2, 3)), np.ones((2, 2, 1)))
        pixels[::2] += 0.1  # a ray's four pixels count together
        pixels[1::2] -= 0.1
        alpha, found = (
            jnp.reshape(jnp.array(x), (1, 2, 2)) for x in (alpha, depth[0] + jnp.array(off))
        )
        seen = stages.Rendering(image=jnp.asarray(pixels)[None], alpha=alpha, depth=found)
        return stages.from_elsewhere(seen, batch, l1)

    hair, empty = stages.HAIR_WEIGHT, stages.EMPTY_WEIGHT
    good = terms([1, 1, 0, 0.7], [0, 0, 9, 9])
    np.testing.assert_allclose([good["silhouette"], good["depth"], good["paint"]], 0, atol=1e-6)
    skin_off = terms([1, 1, 0, 0], [0.5, 0, 0, 0])["depth"]
    hair_off = terms([1, 1, 0, 0], [0, 0.5, 0, 0])["depth"]
    np.testing.assert_allclose(skin_off, 0.25 / (1 + hair), rtol=1e-4)
    np.testing.assert_allclose(hair_off, 0.25 * hair / (1 + hair), rtol=1e-4)
    bald = terms([1, 0, 0, 0], [0, 0, 0, 0])["silhouette"]
    floating = terms([1, 1, 1, 0], [0, 0, 0, 0])["silhouette"]
    np.testing.assert_allclose(bald, 1 / (2 + empty), rtol=1e-5)
    np.testing.assert_allclose(floating, empty / (2 + empty), rtol=1e-5)
    other = colour[0] / 255 - [[0.0] * 3, [0, 0.3, 0], [0.5] * 3, [0.5] * 3]
    squared = terms([1, 1, 0, 0], [0, 0, 0, 0], other)["paint"]
    np.testing.assert_allclose(squared, 0.3**2 / 6, rtol=1e-4)
    both = terms([1, 1, 0, 0], [0, 0, 0, 0], other, 0.5)["paint"]
    np.testing.assert_allclose(both, 0.3**2 / 6 + 0.5 * 0.3 / 6, rtol=1e-4)
    # Where our head is not, white is right, and nothing asks for more of it.
    white = [colour[0][0] / 255, [1.0] * 3, [1.0] * 3, [1.0] * 3]
    np.testing.assert_allclose(terms([1, 0, 0, 0], [0] * 4, white)["paint"], 0, atol=1e-6)
    pull = jax.grad(lambda alpha: terms([1, alpha, 0, 0], [0] * 4, other)["paint"])(0.5)
    assert pull == 0
    batch["novel_painted"] = jnp.array([[True, False, True, True]])  # the other is a mouth
    np.testing.assert_allclose(terms([1, 1, 0, 0], [0, 0, 0, 0], other)["paint"], 0, atol=1e-6)
