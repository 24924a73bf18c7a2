"""`t3d evaluate --space`: what the Standardized Space keeps, and what it brings back (II-D).

Everything is of frames that no network was fitted on. A render that is disturbed is sent
through the space, with the queries of either part let through in place of their codes, or of both:
what the quantisation itself brings back is the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.cluster.vq import kmeans2, vq
from scipy.ndimage import gaussian_filter

from t3d import evaluate, plots, render, report
from t3d import run as runs
from t3d import talker as talkers
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.measure import NO_FIGURE, Figures
from t3d.metrics import action_units, image, lips, uncertainty
from t3d.report import Section
from t3d.run import Run, Speaker
from t3d.space.standardize import Exchange, in_words
from t3d.talker import Motion, Talker

WIDEST = 0.05  # share of the training frames whose mouths are open widest
BEYOND = 2.0  # times as far as those that a mouth is opened, beyond what the speaker does
EXTREME = 3.0  # deviations of a code's normal noise
NOISE = 0.08  # deviation of a pixel's normal noise
BLUR = 1 / 80  # of the image's side, deviation of a Gaussian
KINDS = {
    "opening": "mouth opened beyond the speaker's range",
    "codes": "extreme codes",
    "noise": "noise",
    "blur": "blur",
}
PARTS = {"none": (), "au": ("au",), "global": ("global",), "both": ("au", "global")}
TITLES = {
    "none": "neither quantised",
    "au": "AU space only",
    "global": "global space only",
    "both": "both",
}


@dataclass(frozen=True)
class Frames:
    """Frames of a split, as filmed and as the field renders them from their sound.

    Attributes:
        split: their name; numbers: [T].
        real: uint8 [T, s, s, 3] on white; masks: [T, s, s] in [0, 1].
        motion: of the frames; renders: uint8 [T, s, s, 3].
    """

    split: str
    numbers: np.ndarray
    real: np.ndarray
    masks: np.ndarray
    motion: Motion
    renders: np.ndarray


# ---- through the space


def through(run: Run, images: np.ndarray, exchange: Exchange | None = None) -> np.ndarray:
    """Images uint8 [T, s, s, 3] through the space: uint8 [T, s, s, 3].

    Args:
        exchange: what is decoded in place of the codes (`StandardizedSpace`).
    """
    params = jax.device_put({stage: run.params[stage] for stage in ("au", "space")})
    size = min(runs.BATCH, len(images))
    return runs.in_batches(partial(_sender(run.talker, exchange), params), images, size=size)


@cache
def _sender(talker: Talker, exchange: Exchange | None) -> Callable:
    @jax.jit
    def send(params, some):
        output, _ = talkers.standardise(talker, params, some.astype(jnp.float32) / 255, exchange)
        return jnp.round(output * 255).astype(jnp.uint8)

    return send


@cache
def quantised(*spaces: str) -> Exchange:
    """Codes in these spaces ("au", "global"); in the others the queries go on as they are."""
    return lambda space, queries, found: found.values if space in spaces else queries


def shuffled(run: Run, space: str, seed: int = 0) -> Exchange:
    """Every code of a space ("au" or "global") stands for another one of it."""
    codes = run.params["space"]["params"][f"{space}_codebook"]
    order = np.random.default_rng(seed).permutation(codes.shape[-2])

    def exchange(name, queries, found):
        if name != space:
            return found.values
        other = jnp.asarray(codes)[..., order, :]
        if space == "global":
            return other[found.indices]
        return jax.vmap(lambda rows, index: rows[index])(other, found.indices)

    return exchange


# ---- what is sent through it


def frames_of(run: Run, speaker: Speaker, dataset: SpeakerDataset, split: str) -> Frames:
    """The frames of a split, and the field's renders of them."""
    numbers, size = runs.frames_of(dataset, split), run.config.size
    real, masks = (
        np.stack([dataset.picture(f, kind, size) for f in numbers]) for kind in ("head", "mask")
    )
    motion = runs.motion_of(run, speaker, runs.hear_clip(run, speaker, dataset), numbers)
    renders = _render(run, speaker, dataset, motion, numbers)
    return Frames(split, numbers, real, masks / np.float32(255), motion, renders)


def _render(run, speaker, dataset, motion: Motion, numbers: np.ndarray) -> np.ndarray:
    poses = dataset.track["head_to_world"][numbers]
    views = np.broadcast_to(np.eye(4, dtype=np.float32), poses.shape)
    parts = runs.render_frames(run, speaker, motion, poses, views, standardised=False)
    return np.concatenate([part["nerf"] for part in parts])


def disturbed(
    run: Run, speaker: Speaker, dataset: SpeakerDataset, frames: Frames, kind: str
) -> np.ndarray:
    """Renders uint8 [T, s, s, 3] of the frames, disturbed (KINDS); the same every time."""
    rng = np.random.default_rng([list(KINDS).index(kind), len(frames.numbers)])
    if kind == "noise":
        size = frames.renders.shape[1:]
        return _bytes(x + rng.normal(0, 255 * NOISE, size) for x in frames.renders)
    if kind == "blur":
        wide = BLUR * frames.renders.shape[1]
        return _bytes(gaussian_filter(np.float32(x), (wide, wide, 0)) for x in frames.renders)
    train = dataset.frames("train")
    usual = dataset.track["expression"][train]
    if kind == "opening":
        opening = lips.mouth_opening(dataset.track["points68"][train])
        widest = opening >= np.nanquantile(opening, 1 - WIDEST)
        change = BEYOND * (usual[widest].mean(0) - usual.mean(0))
    else:
        change = EXTREME * usual.std(0) * rng.normal(size=(len(frames.numbers), 79))
    change = change.astype(np.float32)
    motion = frames.motion
    motion = motion.replace(speech=motion.speech + change, expression=motion.expression + change)
    return _render(run, speaker, dataset, motion, frames.numbers)


def _bytes(images: Iterable[np.ndarray]) -> np.ndarray:
    return np.stack([np.clip(np.round(image), 0, 255).astype(np.uint8) for image in images])


# ---- figures


def figures(
    run: Run, speaker: Speaker, dataset: SpeakerDataset, frames: Frames, log=lambda words: None
) -> Figures:
    """All that `--space` says, flat.

    Returns:
        'au/AU25': balanced accuracy of the AU encoder on the real frames (words for an AU that is
        absent or constant), 'au/worst'; 'codes/global/used' and 'codes/au/used' (shares, AUs
        together), 'codes/…/perplexity' (share of the size), the same under 'kmeans/…' of as many
        codes that k-means puts among the AU features of training frames (what such frames allow);
        'shuffled/global' and 'shuffled/au' (SSIM over the head that it costs); 'real/ssim' and
        'real/mouth_r' of the real frames through the space; 'clean/ssim', 'clean/lost' (by the
        space), 'clean/mouth_r', 'clean/kept' (share of the mouth's r that is left); of each kind of
        disturbance and each part of the space, 'disturbed/KIND/PART/closer' (share of the frames
        that are nearer to the real one afterwards, mean absolute difference over the head), with
        its interval, and 'disturbed/KIND/before', 'disturbed/KIND/PART/after' (SSIM over the head).
    """
    log("AU encoder, codebooks")
    found: Figures = {"frames": len(frames.numbers), "split": frames.split}
    found["detector"] = evaluate.detector_of(dataset)
    found |= _units(run, dataset, frames) | _codes(run, frames) | _kmeans(run, dataset, frames)
    log("real frames and clean renders")
    found |= _kept(run, dataset, frames)
    for kind in KINDS:
        log(KINDS[kind])
        found |= _brought_back(run, frames, disturbed(run, speaker, dataset, frames, kind), kind)
    return found


def _units(run: Run, dataset: SpeakerDataset, frames: Frames) -> Figures:
    """Balanced accuracy of each AU on the real frames."""

    judge = jax.jit(lambda params, some: run.talker.au.apply(params, some / 255.0)[1])
    logits = runs.in_batches(partial(judge, run.params["au"]), frames.real)
    true = dataset.track["au"][frames.numbers]
    units = tuple(run.config.au.units)
    judged = action_units.au_accuracy(np.float32(logits > 0), true, units)
    found: Figures = {}
    for name, value in judged.balanced_accuracy.items():
        silent = "absent" if name in judged.absent else "constant"
        known = name not in (*judged.absent, *judged.constant)
        found[f"au/{name}"] = value if known else silent
    values = [value for value in found.values() if isinstance(value, float)]
    return found | {"au/worst": min(values, default=f"{NO_FIGURE}: no AU comes and goes here")}


def _codes(run: Run, frames: Frames) -> Figures:
    """How many of the codes the real frames use, and what shuffling them costs."""
    rows, kept = runs.codes_of(run.talker, run.params, frames.real), through(run, frames.real)
    usual = image.image_series(kept, frames.real, frames.masks)["ssim_head"]
    sizes = {"au": run.config.space.au_codes, "global": run.config.space.global_codes}
    found: Figures = {}
    for space, index in rows.items():
        books = index.reshape(-1, index.shape[-1]).T if space == "au" else [index.ravel()]
        use = [plots.usage(np.bincount(book, minlength=sizes[space])) for book in books]
        found[f"codes/{space}/size"] = sizes[space]
        found[f"codes/{space}/used"] = float(np.mean([used for used, _ in use]))
        perplexity = np.mean([perplexity for _, perplexity in use])
        found[f"codes/{space}/perplexity"] = float(perplexity) / sizes[space]
        found[f"codes/{space}/words"] = in_words(space, index, sizes[space])
        other = through(run, frames.real, shuffled(run, space))
        without = image.image_series(other, frames.real, frames.masks)["ssim_head"]
        found |= _with_interval(f"shuffled/{space}", usual - without)
    return found


def _kmeans(run: Run, dataset: SpeakerDataset, frames: Frames) -> Figures:
    """How many codes real frames use of codebooks that k-means makes of the training frames."""
    if not run.config.space.use_au:
        return {}
    count, numbers = run.config.space.au_codes, dataset.frames("train")
    learned = np.stack([dataset.picture(f, "head", run.config.size) for f in numbers])
    look = jax.jit(lambda params, some: run.talker.au.apply(params, some / 255.0)[0])
    look = partial(look, run.params["au"])
    features, asked = (runs.in_batches(look, images) for images in (learned, frames.real))
    use = []
    for unit in range(features.shape[1]):
        known = features[:, unit]
        codes, _ = kmeans2(known, min(count, len(known)), minit="++", seed=0, missing="warn")
        rows, _ = vq(asked[:, unit], codes)
        use.append(plots.usage(np.bincount(rows, minlength=count)))
    used, perplexity = np.mean(use, 0)
    return {"kmeans/used": float(used), "kmeans/perplexity": float(perplexity) / count}


def _kept(run: Run, dataset: SpeakerDataset, frames: Frames) -> Figures:
    """Real frames and clean renders through the space: what is left of them."""
    real, clean = through(run, frames.real), through(run, frames.renders)

    def ssim(images: np.ndarray) -> np.ndarray:
        return image.image_series(images, frames.real, frames.masks)["ssim_head"]

    truth, again, before, after = (
        evaluate.find_faces(run, dataset, frames.numbers, images).opening
        for images in (frames.real, real, frames.renders, clean)
    )
    r = {
        name: lips.pearson(*lips.against_truth(truth, opening))
        for name, opening in (("real", again), ("before", before), ("after", after))
    }
    found = _with_interval("real/ssim", ssim(real)) | {"real/mouth_r": r["real"]}
    found |= _with_interval("clean/ssim", ssim(frames.renders))
    found |= _with_interval("clean/lost", ssim(frames.renders) - ssim(clean))
    kept = (
        r["after"] / r["before"] if r["before"] > 0 else f"{NO_FIGURE}: the mouth does not follow"
    )
    return found | {"clean/mouth_r": r["before"], "clean/kept": kept}


def _brought_back(run: Run, frames: Frames, images: np.ndarray, kind: str) -> Figures:
    """How often disturbed renders are nearer to the real frames after the space."""
    place = f"disturbed/{kind}"
    ssim = partial(image.image_series, truth=frames.real, masks=frames.masks)
    found = _with_interval(f"{place}/before", ssim(images)["ssim_head"])
    before = _distance(images, frames)
    for part, spaces in parts_of(run).items():
        output = through(run, images, quantised(*spaces))
        nearer = _distance(output, frames) < before
        found |= _with_interval(f"{place}/{part}/closer", nearer.astype(float))
        found |= _with_interval(f"{place}/{part}/after", ssim(output)["ssim_head"])
    return found


def parts_of(run: Run) -> dict[str, tuple[str, ...]]:
    """The PARTS of spaces that the run uses."""
    used = {"au": run.config.space.use_au, "global": run.config.space.use_global}
    return {part: spaces for part, spaces in PARTS.items() if all(used[s] for s in spaces)}


def _distance(images: np.ndarray, frames: Frames) -> np.ndarray:
    """[T] mean absolute difference from the real frames over their heads."""
    off = [
        (np.abs(np.float32(image) - real).mean(-1) * mask).sum()
        for image, real, mask in zip(images, frames.real, frames.masks, strict=True)
    ]
    return np.array(off) / np.maximum(frames.masks.sum((1, 2)), 1e-6)


def _with_interval(name: str, series: np.ndarray) -> Figures:
    low, high = uncertainty.interval(np.nanmean, series)
    return {name: float(np.nanmean(series)), f"{name}_low": low, f"{name}_high": high}


# ---- the command


def tables(found: Figures) -> list[Section]:
    """The figures as tables."""
    cell = partial(report.cell, found)
    units = [name for name in found if name.startswith("au/AU")]
    spaces = {"au": "AU codebooks (mean)", "global": "global codebook"}
    books = [
        [
            f"{title}, {found[f'codes/{space}/size']} codes",
            *(cell(f"codes/{space}/{key}", 2) for key in ("used", "perplexity")),
            cell(f"shuffled/{space}", 3),
        ]
        for space, title in spaces.items()
        if f"codes/{space}/size" in found
    ]
    if "kmeans/used" in found:
        title = "AU codebooks that k-means makes of the training frames"
        books.append(
            [title, cell("kmeans/used", 2), cell("kmeans/perplexity", 2), report.NO_FIGURE]
        )
    kept = {
        "real frames through the space: SSIM over the head": ("real/ssim", 3),
        "their mouth opening's r with the real one": ("real/mouth_r", 2),
        "clean renders: SSIM over the head": ("clean/ssim", 3),
        "what the space costs them": ("clean/lost", 3),
        "their mouth opening's r": ("clean/mouth_r", 2),
        "share of it that the space keeps": ("clean/kept", 2),
    }
    back = [
        [
            words,
            cell(f"disturbed/{kind}/before", 3),
            cell(f"disturbed/{kind}/both/after", 3),
            *(cell(f"disturbed/{kind}/{part}/closer", 2) for part in PARTS),
        ]
        for kind, words in KINDS.items()
    ]
    return [
        Section(
            "AU encoder on real frames",
            ["", *(unit.removeprefix("au/") for unit in units)],
            [["balanced accuracy", *(cell(unit, 2) for unit in units)]],
        ),
        Section(
            "Codebooks, on real frames",
            ["", "codes used", "perplexity, share of the size", "SSIM that shuffling costs"],
            books,
        ),
        Section("What is kept", ["", ""], [[name, cell(*key)] for name, key in kept.items()]),
        Section(
            "Disturbed renders: share nearer to the real frame after the space",
            ["", "SSIM before", "after", *TITLES.values()],
            back,
        ),
    ]


def notes(found: Figures) -> list[str]:
    """What must be known to read the tables."""
    lines = [
        f"{found['frames']} frames of the {found['split']} split. Detector of faces: "
        f"{found['detector']}."
    ]
    lines += [words for name, words in found.items() if name.endswith("/words")]
    lines.append("In brackets: 95 % intervals, blocks of a second resampled.")
    return lines


def space_command(args) -> None:
    """`t3d evaluate --space`."""
    run = runs.open_run(args.workdir)
    speaker = render.speaker_of(run, args.speaker)
    dataset = runs.dataset_of(run, speaker, args.data)
    if note := evaluate.detector_note(dataset):
        print(note)
    evaluate.check_detector(dataset)
    frames = frames_of(run, speaker, dataset, args.split)
    found = figures(run, speaker, dataset, frames, lambda words: print(f"space: {words}"))
    place = run.workdir / "space.json"
    for path in (place, args.json):
        if path:
            evaluate.write_json(Path(path), found)
    report.show_sections(tables(found), notes(found))
    print(place)
