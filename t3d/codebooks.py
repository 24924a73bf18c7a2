"""What the codebooks of a run hold, in pictures: `notebooks/codebooks.ipynb` (II-D).

All of it is of test frames, which neither the codes nor their encoders were trained on, but the
curves over training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from t3d import plots
from t3d import run as runs
from t3d import talker as talkers
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.errors import UserError
from t3d.metrics import lips
from t3d.run import Run
from t3d.standardisation import through
from t3d.train import writers

NEEDED = ("au", "space")  # stages of a run
MOST_FRAMES = 250  # of a speaker that are looked at: 10 s
PATCHES, CODES = 8, 8  # shown of each code; codes that are shown
WHITE = 250  # of 255: a patch with nothing darker shows no head
AROUND = 4  # patches on each side of a token that are shown with it
CURVES = {  # of training, by the names of their logs
    "global codes used, share": "space/global_usage",
    "global perplexity": "space/global_perplexity",
    "AU codes used, share": "space/au_usage",
    "AU perplexity": "space/au_perplexity",
}


@dataclass(frozen=True)
class Seen:
    """Test frames of a speaker and the codes that they find.

    Attributes:
        name: the speaker's; frames: [T] numbers; images: uint8 [T, s, s, 3].
        opening: [T] of the mouth over the eye distance; on: [T, n_au] whether each AU is.
        sound: [T · 640], 16 kHz.
        au, tokens: [T, n_au] and [T, h, w] rows of the codes, tokens −1 beside the head; away:
            [T, h, w] distance of each token's query from its code. None of a space not in use.
    """

    name: str
    frames: np.ndarray
    images: np.ndarray
    opening: np.ndarray
    on: np.ndarray
    sound: np.ndarray
    au: np.ndarray | None
    tokens: np.ndarray | None
    away: np.ndarray | None


def open_codebooks(
    workdir: str | Path, places: str | Path | Sequence[str | Path] = ()
) -> tuple[Run, list[Seen]]:
    """A run whose space is trained, and the codes that its speakers' test frames find.

    Args:
        places: of the datasets in the run's order, if they have moved.

    Raises:
        UserError: no such run, a stage that is missing, a space without codebooks, a dataset that
            is not there.
    """
    run = runs.open_run(workdir, NEEDED)
    if not (run.config.space.use_au or run.config.space.use_global):
        raise UserError(f"{workdir}: its Standardized Space uses neither codebook")
    places = [places] if isinstance(places, (str, Path)) else places
    if places and len(places) != len(run.speakers):
        names = ", ".join(speaker.name for speaker in run.speakers)
        raise UserError(f"{len(places)} datasets are given; give those of {names}, in this order")
    moved = places or [None] * len(run.speakers)
    return run, [
        _look(run, speaker.name, runs.dataset_of(run, speaker, place))
        for speaker, place in zip(run.speakers, moved)
    ]


def _look(run: Run, name: str, dataset: SpeakerDataset) -> Seen:
    frames, size = runs.frames_of(dataset, "test")[:MOST_FRAMES], run.config.size
    images = np.stack([dataset.picture(f, "head", size) for f in frames])

    @jax.jit
    def look(params, some):
        asked = {}

        def keep(space, queries, found):
            asked[space] = jnp.linalg.norm(queries - found.codes, axis=-1)
            return found.values

        _, found = talkers.standardise(run.talker, params, some / 255.0, keep)
        rows = {space: found[space].indices for space in asked}
        if "global" in asked:
            rows["away"] = asked["global"]
        return rows | ({"au": rows["au"].T} if "au" in rows else {})

    rows = runs.in_batches(partial(look, run.params), images, size=runs.BATCH)
    return Seen(
        name=name,
        frames=frames,
        images=images,
        opening=lips.mouth_opening(dataset.track["points68"][frames]),
        on=dataset.track["au"][frames] > 0.5,
        sound=runs.sound_of(dataset, frames),
        au=rows.get("au"),
        tokens=_on_head(rows.get("global"), images),
        away=rows.get("away"),
    )


def _on_head(tokens: np.ndarray | None, images: np.ndarray) -> np.ndarray | None:
    """The tokens, and −1 for those of patches that are white all over."""
    if tokens is None:
        return None
    count, h, w = tokens.shape
    patches = images.reshape(count, h, images.shape[1] // h, w, images.shape[2] // w, 3)
    return np.where(patches.min((2, 4, 5)) < WHITE, tokens, -1)


def unit_names(run: Run) -> list[str]:
    """AU10 and so on."""
    return [f"AU{unit}" for unit in run.config.au.units]


def books(run: Run, seen: Seen) -> dict[str, np.ndarray]:
    """How often the frames' heads use each code: title of a codebook → [K]."""
    counts = {}
    if seen.tokens is not None:
        on_head = seen.tokens[seen.tokens >= 0]
        counts["global"] = np.bincount(on_head, minlength=run.config.space.global_codes)
    if seen.au is not None:
        for unit, rows in zip(unit_names(run), seen.au.T):
            counts[unit] = np.bincount(rows, minlength=run.config.space.au_codes)
    return counts


# ---- pictures


def training_curves(run: Run) -> bytes:
    """Codes in use and their perplexity over the training of the space, as SVG."""
    logged = writers.read_scalars(run.workdir / "logs" / "space")
    curves = {title: logged[name] for title, name in CURVES.items() if name in logged}
    if not curves:
        raise UserError(
            f"{run.workdir / 'logs' / 'space'}: no logs of the space's training; they lie beside "
            "the params of the run, copy them with it"
        )
    return plots.step_curves(curves)


def patches(seen: Seen, patch: int) -> Image.Image:
    """The global codes that are used most, and the nearest places of the frames that found them.

    A place is shown with `AROUND` patches on each side of it; no two are of the same frame.

    Args:
        patch: pixels of a token's side.
    """
    rows = []
    counts = np.bincount(seen.tokens[seen.tokens >= 0])
    side = (2 * AROUND + 1) * patch
    margin = AROUND * patch
    padded = np.pad(seen.images, ((0, 0), (margin,) * 2, (margin,) * 2, (0, 0)), mode="edge")
    for code in [code for code in np.argsort(-counts)[:CODES] if counts[code]]:
        away = np.where(seen.tokens == code, seen.away, np.inf)
        flat = away.reshape(len(away), -1)
        nearest = flat.argmin(1)
        order = [t for t in np.argsort(flat.min(1))[:PATCHES] if np.isfinite(flat[t].min())]
        cut = []
        for t in order:
            y, x = (patch * place for place in divmod(int(nearest[t]), away.shape[2]))
            cut.append(padded[t, y : y + side, x : x + side])
        share = counts[code] / counts.sum()
        rows.append((f"code {code}, {share:.1%} of the head", cut, []))
    return plots.sheet(rows)


def au_states(run: Run, seen: Seen) -> Image.Image:
    """Of each AU the codes that are used most, a frame of each, and how often the AU is on then."""
    rows = []
    for unit, (name, codes) in enumerate(zip(unit_names(run), seen.au.T)):
        used = np.argsort(-np.bincount(codes))[:PATCHES]
        used = [code for code in used if (codes == code).any()]
        opening = [np.nanmean(seen.opening[codes == code]) for code in used]
        used = [used[k] for k in np.argsort(opening)]
        frames = [_typical(seen, codes == code) for code in used]
        labels = [f"{code}: on {seen.on[codes == code, unit].mean():.0%}" for code in used]
        rows.append((name, seen.images[frames], labels))
    return plots.sheet(rows)


def _typical(seen: Seen, chosen: np.ndarray) -> int:
    """Of the chosen frames that with the middle opening."""
    frames = np.flatnonzero(chosen)
    return int(frames[np.argsort(seen.opening[frames])[len(frames) // 2]])


def au_switches(run: Run, seen: Seen) -> Image.Image:
    """A face with each AU's code exchanged for that of an AU which is off, and for one that is on.

    The codes are those used most where the AU's label is off and where it is on; of an AU that is
    always the same, where the mouth is more closed and more open than in the middle. The last
    picture says where the two differ, four times as strong.
    """
    face = seen.images[_typical(seen, np.isfinite(seen.opening))][None]
    codes = run.params["space"]["params"]["au_codebook"]
    usual, rows = through(run, face)[0], []
    for unit, name in enumerate(unit_names(run)):
        on, words = seen.on[:, unit], ("off", "on")
        if on.all() or not on.any():
            on, words = seen.opening > np.nanmedian(seen.opening), ("mouth closed", "mouth open")
        chosen = [np.bincount(seen.au[on == side, unit]).argmax() for side in (False, True)]
        images = [through(run, face, _with_code(codes, unit, code))[0] for code in chosen]
        apart = np.abs(images[1].astype(int) - images[0]).clip(0, 63) * 4
        labels = [f"{word} ({code})" for word, code in zip(words, chosen)]
        pictures = [usual, *images, 255 - apart.astype(np.uint8)]
        rows.append((name, pictures, ["through the space", *labels, "difference x 4"]))
    return plots.sheet(rows)


def _with_code(codes: jax.Array, unit: int, code: int):
    def exchange(space, queries, found):
        return found.values.at[unit].set(codes[unit, code]) if space == "au" else found.values

    return exchange


def global_switches(run: Run, seen: Seen) -> Image.Image:
    """A face with the codes that it uses most exchanged for the nearest other one, one by one."""
    frame = _typical(seen, np.isfinite(seen.opening))
    face, tokens = seen.images[frame][None], seen.tokens[frame]
    codes = np.asarray(run.params["space"]["params"]["global_codebook"])
    whole, size = through(run, face)[0], face.shape[1]
    rows = []
    counts = np.bincount(tokens[tokens >= 0])
    for code in [code for code in np.argsort(-counts)[: CODES // 2] if counts[code]]:
        apart = np.linalg.norm(codes - codes[code], axis=-1)
        apart[code] = np.inf
        other = apart.argmin()

        def exchange(space, queries, found, code=code, other=other):
            if space != "global":
                return found.values
            return jnp.where((found.indices == code)[..., None], codes[other], found.values)

        off = through(run, face, exchange)[0]
        where = np.kron(tokens == code, np.ones([size // len(tokens)] * 2))[..., None]
        place = (whole * (0.35 + 0.65 * where)).astype(np.uint8)
        change = np.abs(off.astype(int) - whole).clip(0, 63) * 4
        labels = ["on", "where it is", f"off (code {other})", "difference x 4"]
        rows.append((f"code {code}", [whole, place, off, 255 - change.astype(np.uint8)], labels))
    return plots.sheet(rows)


def over_time(run: Run, seen: Seen) -> bytes:
    """The AU codes over time under the sound and the mouth's opening, as SVG.

    A code's colour is the mean opening of the frames that use it.
    """
    opening = np.stack([_mean_of(seen.opening, rows)[rows] for rows in seen.au.T])
    return plots.code_rasters(
        dict(zip(unit_names(run), opening)), seen.opening, seen.frames, seen.sound
    )


def _mean_of(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean value of each code, NaN of one that is not used."""
    known = np.isfinite(values)
    count = np.bincount(rows[known], minlength=rows.max() + 1)
    total = np.bincount(rows[known], values[known], minlength=rows.max() + 1)
    return np.where(count, total / np.maximum(count, 1), np.nan)


def code_map(run: Run, seen: Seen) -> bytes:
    """Both codebooks in their two widest directions; size is use, colour the mean opening."""
    leaves = run.params["space"]["params"]
    panels = {}
    counts = books(run, seen)
    for title, use in counts.items():
        if title == "global":
            codes, rows = leaves["global_codebook"], seen.tokens[seen.tokens >= 0]
            values = np.broadcast_to(seen.opening[:, None, None], seen.tokens.shape)
            values = values[seen.tokens >= 0]
        else:
            unit = unit_names(run).index(title)
            codes, rows, values = leaves["au_codebook"][unit], seen.au[:, unit], seen.opening
        mean = np.full(len(use), np.nan)
        known = _mean_of(values.ravel(), rows.ravel())
        mean[: len(known)] = known
        panels[title] = _plane(np.asarray(codes)), use, mean
    return plots.code_map(panels)


def _plane(codes: np.ndarray) -> np.ndarray:
    """Codes [K, D] in their two widest directions [K, 2]."""
    middle = codes - codes.mean(0)
    _, _, directions = np.linalg.svd(middle, full_matrices=False)
    return middle @ directions[:2].T


def shared(run: Run, all_of: Sequence[Seen]) -> dict[str, dict[str, float]]:
    """Of the codes that two speakers use, the shares that one, both and the other do.

    Returns:
        title of a codebook → {"NAME only", "both", "OTHER only": share}.
    """
    one, other = all_of[:2]
    found = {}
    for title, use in books(run, one).items():
        a, b = use > 0, books(run, other)[title] > 0
        parts = {f"{one.name} only": a & ~b, "both": a & b, f"{other.name} only": b & ~a}
        found[title] = {name: float(part.sum() / (a | b).sum()) for name, part in parts.items()}
    return found
