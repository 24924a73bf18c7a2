"""A synthetic speaker whose every code, camera and other view is known.

A small formant voice speaks; each of its phones has a mouth shape, so that sound and lips belong
together; a 3DMM with hair, cloth and a painted skin is rendered from several cameras. Everything
that went into the pictures is stored beside them as the truth.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
from rich.progress import Progress
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.spatial import cKDTree

from t3d import camera as cameras
from t3d.camera import Camera
from t3d.data.landmarks import BLENDSHAPES
from t3d.data.video import FPS, RATE, write_video
from t3d.errors import UserError
from t3d.metrics import action_units
from t3d.prior import basis, heads, morphable, raster, shading
from t3d.prior.morphable import MorphableModel

_FOCAL = 2.2  # × image side
_HEAD_SHARE = 0.58  # of the image's height, chin to hair
_VIEWS = (  # yaw and pitch of the other cameras in degrees
    *((30, 0), (-30, 0), (15, 0), (-15, 0), (45, 0), (-45, 0)),
    *((0, 15), (0, -15), (60, 0), (-60, 0)),
)
_KEPT = 10  # of so many frames one's depth is stored
_RELIEF = 0.5  # cm that the surface lies off the model at most
_RELIEF_WAVE = 8.5  # cm from one swelling to the next
_METADATA = {"comment": "synthetic media: made by t3d synthesize"}
EXPRESSION_NAMES = tuple(BLENDSHAPES)
_CONTROL_RATE = 1000
_MOUTH_RATE = 200


class Phone(NamedTuple):
    """One sound of the synthetic voice: its symbol and when it is heard, in seconds."""

    symbol: str
    start: float
    end: float


class _Sound(NamedTuple):
    """How a phone sounds (Hz, gains) and how the mouth makes it (ICT weights).

    `hold` is how firmly the mouth keeps the shape against its neighbours (coarticulation).
    """

    formants: tuple[float, float, float]
    voice: float
    noise: float
    band: tuple[float, float]
    seconds: float
    hold: float
    mouth: dict[str, float]


def _sides(mouth: dict[str, float]) -> dict[str, float]:
    """Gives both sides the weight of a shape that ICT keeps per side."""
    return {
        name + side: weight
        for name, weight in mouth.items()
        for side in ("", "_L", "_R")
        if name + side in EXPRESSION_NAMES
    }


def _vowel(f1: float, f2: float, f3: float, seconds: float, **mouth: float) -> _Sound:
    return _Sound((f1, f2, f3), 1.0, 0.0, _NO_NOISE, seconds, 1.0, _sides(mouth))


def _consonant(formants, voice, noise, band, seconds, hold, **mouth) -> _Sound:
    return _Sound(formants, voice, noise, band, seconds, hold, _sides(mouth))


_NO_NOISE = (4000, 1000)
_LIPS_SHUT = {"mouthPress": 0.35, "mouthRollLower": 0.12, "mouthRollUpper": 0.08}
_TEETH_ON_LIP = {"mouthRollLower": 0.4, "mouthShrugUpper": 0.4}
# Formants of an adult male's vowels after Peterson & Barney (1952).
_VOWELS = {
    "AA": _vowel(730, 1090, 2440, 0.17, jawOpen=0.72, mouthUpperUp=0.3),
    "AE": _vowel(660, 1720, 2410, 0.17, jawOpen=0.55, mouthStretch=0.25, mouthUpperUp=0.35),
    "AH": _vowel(640, 1190, 2390, 0.13, jawOpen=0.46, mouthUpperUp=0.2),
    "AO": _vowel(570, 840, 2410, 0.17, jawOpen=0.55, mouthFunnel=0.45),
    "EH": _vowel(530, 1840, 2480, 0.14, jawOpen=0.38, mouthStretch=0.25, mouthDimple=0.1),
    "ER": _vowel(490, 1350, 1690, 0.15, jawOpen=0.22, mouthFunnel=0.3, mouthShrugUpper=0.2),
    "OW": _vowel(450, 850, 2400, 0.16, jawOpen=0.32, mouthFunnel=0.5, mouthPucker=0.3),
    "IH": _vowel(390, 1990, 2550, 0.12, jawOpen=0.2, mouthStretch=0.35, mouthDimple=0.15),
    "IY": _vowel(270, 2290, 3010, 0.15, jawOpen=0.12, mouthStretch=0.6, mouthDimple=0.4),
    "UW": _vowel(300, 870, 2240, 0.15, jawOpen=0.12, mouthPucker=0.8, mouthFunnel=0.2),
}
_CONSONANTS = {
    "M": _consonant((250, 1000, 2200), 0.55, 0.0, _NO_NOISE, 0.09, 4.0, **_LIPS_SHUT),
    "B": _consonant((200, 800, 2200), 0.2, 0.0, _NO_NOISE, 0.09, 4.0, **_LIPS_SHUT),
    "P": _consonant((200, 800, 2200), 0.0, 0.02, (1200, 1500), 0.1, 4.0, **_LIPS_SHUT),
    "F": _consonant((300, 1200, 2300), 0.0, 0.12, (6500, 4000), 0.1, 2.5, **_TEETH_ON_LIP),
    "V": _consonant((250, 1200, 2300), 0.4, 0.06, (6000, 4000), 0.08, 2.5, **_TEETH_ON_LIP),
    "N": _consonant((250, 1500, 2500), 0.5, 0.0, _NO_NOISE, 0.08, 0.6, jawOpen=0.12),
    "L": _consonant((360, 1200, 2800), 0.7, 0.0, _NO_NOISE, 0.07, 0.5, jawOpen=0.2),
    "D": _consonant((220, 1700, 2600), 0.2, 0.03, (3800, 2000), 0.07, 0.6, jawOpen=0.12),
    "S": _consonant(
        (300, 1700, 2600), 0.0, 0.3, (5800, 1600), 0.11, 1.2, jawOpen=0.05, mouthStretch=0.3,
        mouthDimple=0.2,
    ),
    "SH": _consonant(
        (300, 1800, 2500), 0.0, 0.35, (2900, 1200), 0.12, 1.5, jawOpen=0.08, mouthFunnel=0.5,
        mouthPucker=0.25,
    ),
    "W": _consonant((300, 650, 2200), 0.7, 0.0, _NO_NOISE, 0.08, 2.0, mouthPucker=0.9),
}  # fmt: skip
_SILENCE = {"SIL": _Sound((500, 1500, 2500), 0.0, 0.0, _NO_NOISE, 0.4, 1.0, {})}
_SOUNDS = {**_VOWELS, **_CONSONANTS, **_SILENCE}


class _Utterance(NamedTuple):
    phones: list[Phone]
    stress: np.ndarray  # per phone: loudness and opening, about 1
    pitch: np.ndarray  # per phone: semitones above the speaker's own


def _phrase(rng: np.random.Generator, rate: float) -> list[tuple[str, float, float, float]]:
    """(symbol, seconds, stress, pitch) of one phrase, spoken at `rate` times the usual speed."""
    out = []
    syllables = rng.integers(4, 11)
    for syllable in range(syllables):
        stress = rng.uniform(0.7, 1.3)
        pitch = 3.0 - 5.0 * syllable / syllables + 2.5 * (stress - 1.0) + rng.normal(0.0, 0.5)
        symbols = [rng.choice(list(_CONSONANTS))] if rng.random() < 0.85 else []
        symbols.append(rng.choice(list(_VOWELS)))
        if rng.random() < 0.3:
            symbols.append(rng.choice(list(_CONSONANTS)))
        for symbol in symbols:
            seconds = _SOUNDS[symbol].seconds * rng.uniform(0.8, 1.3) / rate
            out.append((str(symbol), seconds, stress, pitch))
    return out


def _utterance(seconds: float, rng: np.random.Generator) -> _Utterance:
    """Phrases at two speaking rates with pauses between, for `seconds`; ends in silence."""
    parts = [("SIL", 0.3, 1.0, 0.0)]
    now = 0.3
    while now < seconds:
        phrase = _phrase(rng, rng.choice([0.85, 1.2]))
        phrase.append(("SIL", rng.uniform(0.25, 0.7), 1.0, 0.0))
        parts += phrase
        now = sum(part[1] for part in parts)
    ends = np.minimum(np.cumsum([part[1] for part in parts]), seconds)
    starts = np.concatenate([[0.0], ends[:-1]])
    kept = [i for i in range(len(parts)) if ends[i] - starts[i] > 1e-6]
    phones = [Phone(parts[i][0], float(starts[i]), float(ends[i])) for i in kept]
    phones[-1] = phones[-1]._replace(symbol="SIL")
    return _Utterance(
        phones,
        np.array([parts[i][2] for i in kept]),
        np.array([parts[i][3] for i in kept]),
    )


def _hold_steps(utterance: _Utterance, values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Per-phone `values` [P, …] as a step function read at `times` [N]."""
    ends = np.array([phone.end for phone in utterance.phones])
    return values[np.clip(np.searchsorted(ends, times, side="right"), 0, len(ends) - 1)]


def _controls(utterance: _Utterance, samples: int, rng: np.random.Generator) -> dict:
    """Synthesis parameters for every sample: smooth tracks from one value a phone."""
    times = np.arange(0.0, samples / RATE + 0.01, 1.0 / _CONTROL_RATE)
    sounds = [_SOUNDS[phone.symbol] for phone in utterance.phones]
    per_phone = {
        "formants": (np.array([s.formants for s in sounds]), 0.018),
        "voice": (np.array([s.voice for s in sounds]) * utterance.stress, 0.009),
        "noise": (np.array([s.noise for s in sounds]) * utterance.stress, 0.007),
        "band": (np.array([s.band for s in sounds], float), 0.010),
        "pitch": (utterance.pitch, 0.045),
    }
    at = np.arange(samples) / RATE
    out = {}
    for name, (values, seconds) in per_phone.items():
        track = _hold_steps(utterance, values.astype(float), times)
        track = gaussian_filter1d(track, seconds * _CONTROL_RATE, axis=0, mode="nearest")
        columns = track.reshape(len(times), -1).T
        out[name] = np.stack([np.interp(at, times, column) for column in columns], -1)
    drift = gaussian_filter1d(rng.normal(size=len(times)), 0.01 * _CONTROL_RATE)
    out["pitch"] += np.interp(at, times, 0.15 * drift / drift.std())[:, None]
    return out


def _glottal_source(f0: np.ndarray) -> np.ndarray:
    """Derivative of Rosenberg's (1971) glottal flow at the pitch `f0` [N] Hz, about ±1."""
    phase = np.cumsum(f0 / RATE) % 1.0
    opening, closing = 0.42, 0.18
    rise = 0.5 * np.pi / opening * np.sin(np.pi * phase / opening)
    fall = -0.5 * np.pi / closing * np.sin(0.5 * np.pi * (phase - opening) / closing)
    flow = np.where(phase < opening, rise, np.where(phase < opening + closing, fall, 0.0))
    return flow * closing


@numba.njit(cache=True)
def _resonate(signal, frequency, bandwidth):
    """A two-pole resonator (Klatt, 1980) whose frequency and bandwidth [N] Hz move, DC gain 1."""
    out = np.empty_like(signal)
    last, before = 0.0, 0.0
    for n in range(signal.size):
        c = -np.exp(-2.0 * np.pi * bandwidth[n] / RATE)
        b = 2.0 * np.exp(-np.pi * bandwidth[n] / RATE) * np.cos(2.0 * np.pi * frequency[n] / RATE)
        value = (1.0 - b - c) * signal[n] + b * last + c * before
        before, last = last, value
        out[n] = value
    return out


def _waveform(utterance: _Utterance, samples: int, rng: np.random.Generator) -> np.ndarray:
    """The sound [samples] float32, peak 0.8, over a faint room noise."""
    control = _controls(utterance, samples, rng)
    f0 = 112.0 * 2.0 ** (control["pitch"][:, 0] / 12.0)
    voiced = _glottal_source(f0) * control["voice"][:, 0]
    for formant, bandwidth in enumerate((80.0, 100.0, 140.0)):
        width = np.full(samples, bandwidth)
        voiced = _resonate(voiced, control["formants"][:, formant].copy(), width)
    voiced = _resonate(voiced, np.full(samples, 3500.0), np.full(samples, 250.0))
    hiss = rng.normal(size=samples) * control["noise"][:, 0]
    band = control["band"]
    hiss = _resonate(hiss, band[:, 0].copy(), band[:, 1].copy())
    hiss = np.diff(hiss, prepend=0.0)
    sound = voiced + hiss
    sound = 0.8 * sound / np.abs(sound).max() + 3e-4 * rng.normal(size=samples)
    return np.clip(sound, -0.85, 0.85).astype(np.float32)


def _mouth(utterance: _Utterance, frames: int) -> np.ndarray:
    """Mouth weights [frames, 53] at the middle of each frame.

    Coarticulation: each phone pulls towards its shape with its hold while it sounds, and the
    pulls are averaged over about a tenth of a second.
    """
    sounds = [_SOUNDS[phone.symbol] for phone in utterance.phones]
    names = EXPRESSION_NAMES
    shapes = np.zeros((len(sounds), len(names)))
    for row, sound in enumerate(sounds):
        for name, weight in sound.mouth.items():
            shapes[row, names.index(name)] = weight
    shapes[:, names.index("jawOpen")] *= utterance.stress
    times = np.arange(0.0, frames / FPS + 0.2, 1.0 / _MOUTH_RATE)
    hold = _hold_steps(utterance, np.array([sound.hold for sound in sounds]), times)[:, None]
    target = _hold_steps(utterance, shapes, times)
    sigma = 0.03 * _MOUTH_RATE
    pull = gaussian_filter1d(hold * target, sigma, axis=0, mode="nearest")
    blended = pull / gaussian_filter1d(hold, sigma, axis=0, mode="nearest")
    middle = (np.arange(frames) + 0.5) / FPS
    columns = [np.interp(middle, times, column) for column in blended.T]
    return np.stack(columns, -1).astype(np.float32)


class _Surface(NamedTuple):
    """One mesh of everything that is seen, in the head's rest pose (centimetres, model frame).

    The first vertices are the model's, then the hair shell's, then the cloth's; `part` says which
    of SKIN, HAIR, CLOTH, INSIDE a triangle is, and where `head` is positive is the head's mask.
    """

    rest: np.ndarray  # [V, 3]
    colour: np.ndarray  # [V, 3]
    triangles: np.ndarray  # [F, 3]
    part: np.ndarray  # [F]
    head: np.ndarray  # [V]
    cloth: int  # index of the first vertex of the cloth
    centre: np.ndarray  # [3] of the skull: textures are mapped by the direction from it
    textures: np.ndarray  # [parts, h, w, 3], factors of the colour


_SKIN, _HAIR, _CLOTH, _INSIDE = range(4)
_TEXTURE_SIZE = (512, 1024)  # latitudes × longitudes


def _longitude_latitude(offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions [..., 3] as longitude (0 = ahead, towards +x) and latitude (up), radians."""
    flat = np.hypot(offset[..., 0], offset[..., 2])
    return np.arctan2(offset[..., 0], offset[..., 2]), np.arctan2(offset[..., 1], flat)


def _smoothstep(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def _noise(rng: np.random.Generator, shape: tuple[int, int], sigma: tuple[float, float]):
    """Smooth noise of unit deviation that wraps around in longitude (the second axis)."""
    noise = gaussian_filter(rng.normal(size=shape), sigma, mode=("nearest", "wrap"))
    return noise / noise.std()


def _grid_triangles(rows: int, columns: int) -> np.ndarray:
    """Triangles of a rows × columns grid that is closed in its second axis."""
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(columns), indexing="ij")
    a, b = i * columns + j, i * columns + (j + 1) % columns
    c, d = a + columns, b + columns
    return np.concatenate([np.stack([a, b, d], -1), np.stack([a, d, c], -1)]).reshape(-1, 3)


def _skull_centre(skin: np.ndarray, marks: np.ndarray) -> np.ndarray:
    above = skin[skin[:, 1] > marks[17:27, 1].mean()]
    z = (above[:, 2].min() + above[:, 2].max()) / 2
    return np.array([0.0, marks[17:27, 1].mean(), z])


def _hairline(longitude: np.ndarray, marks: np.ndarray, top: float) -> np.ndarray:
    """Height (y, cm) above which hair grows: forehead, temples, sideburns, ears, nape."""
    brow, eye = marks[17:27, 1].mean(), marks[36:48, 1].mean()
    mouth, jaw = marks[48:60, 1].mean(), marks[[4, 12], 1].mean()
    degrees = [0, 35, 58, 70, 80, 90, 105, 120, 135, 180]
    heights = [0.52, 0.46, 0.3, 0.0, 0.0, 0.1, 0.1, 0.0, 0.0, 0.0]
    heights = brow + np.array(heights) * (top - brow)
    heights[3:5] = eye - 1.0, eye - 2.0
    heights[7:] = (eye + mouth) / 2, (mouth + jaw) / 2, jaw
    return np.interp(np.abs(np.degrees(longitude)), degrees, heights)


def _hair(skin: np.ndarray, marks: np.ndarray, centre: np.ndarray, rng: np.random.Generator):
    """A cap of hair 1 to 2 cm off the skull that sinks under the skin at the hairline.

    Returns:
        vertices [V, 3] and triangles [F, 3].
    """
    rows, columns = 56, 192
    latitude = np.radians(np.linspace(-55.0, 90.0, rows))[:, None]
    longitude = np.linspace(-np.pi, np.pi, columns, endpoint=False)[None]
    latitude, longitude = np.broadcast_arrays(latitude, longitude)
    direction = np.stack(
        [
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude),
            np.cos(latitude) * np.cos(longitude),
        ],
        -1,
    )
    offset = skin - centre
    radius = np.linalg.norm(offset, axis=-1)
    _, near = cKDTree(offset / radius[:, None]).query(direction, 12)
    skull = gaussian_filter(np.percentile(radius[near], 40, axis=-1), 1.0, mode=("nearest", "wrap"))
    ragged = 0.3 * _noise(rng, (rows, columns), (30.0, 0.7))
    height = centre[1] + skull * direction[..., 1] - ragged
    grown = _smoothstep((height - _hairline(longitude, marks, skin[:, 1].max())) / 1.8 + 0.25)
    volume = rng.uniform(1.0, 1.5) + 0.5 * np.maximum(direction[..., 1], 0.0)
    volume = volume + 0.12 * _noise(rng, (rows, columns), (3.0, 1.5)) * np.cos(latitude)
    shell = skull - 0.5 + grown * (volume + 0.5)
    triangles = _grid_triangles(rows, columns)
    triangles = triangles[(grown.reshape(-1)[triangles] > 0.0).any(-1)]
    return (centre + shell[..., None] * direction).reshape(-1, 3), triangles


class _Neck(NamedTuple):
    """The neck just below the chin: half width, half depth and middle (z), cm."""

    wide: float
    deep: float
    middle: float


def _measure_neck(skin: np.ndarray, marks: np.ndarray) -> _Neck:
    drop = marks[8, 1] - skin[:, 1]
    ring = skin[(drop > 1.5) & (drop < 3.5)]
    back, front = ring[:, 2].min(), ring[:, 2].max()
    return _Neck(np.abs(ring[:, 0]).max(), (front - back) / 2.0, (front + back) / 2.0)


def _torso(marks: np.ndarray, neck: _Neck) -> tuple[np.ndarray, np.ndarray]:
    """Collar and shoulders below the chin: vertices [V, 3], triangles [F, 3]."""
    columns = 72
    profile = np.array(  # below the chin, out from the neck at the sides, in front and behind
        [[5.6, 0.0, 0.0], [5.0, 0.3, 0.5], [5.1, 0.9, 1.0], [6.2, 2.6, 1.8], [7.4, 6.5, 2.5],
         [9.0, 11.5, 3.5], [12.0, 15.0, 4.5], [18.0, 17.0, 5.5], [40.0, 17.5, 6.0]]
    )  # fmt: skip
    angle = np.linspace(0.0, 2.0 * np.pi, columns, endpoint=False)[None]
    drop, wide, deep = profile[::-1].T[:, :, None]
    # The collar lies lower in front than at the nape.
    tilt = 1.8 * np.cos(angle) * np.clip(1.6 - drop / 10.0, 0.0, 1.0)
    x, y = (neck.wide + wide) * np.sin(angle), marks[8, 1] - drop - tilt
    z = neck.middle + (neck.deep + deep) * np.cos(angle) - 0.12 * (drop - 5.0)
    vertices = np.stack(np.broadcast_arrays(x, y, z), -1)
    return vertices.reshape(-1, 3), _grid_triangles(len(profile), columns)


def _above_jaw(rest: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """[V] cm above the lower edge of the head: 0.6 below the jaw's in front, level behind it."""
    corner, chin = marks[[4, 12]].mean(0), marks[8]
    share = np.clip((rest[:, 2] - corner[2]) / (chin[2] - corner[2]), 0.0, 1.0)
    return rest[:, 1] - corner[1] - share * (chin[1] - corner[1]) + 0.6


def _paint_skin(marks: np.ndarray, centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What the albedo basis cannot say: pores, freckles, lip lines, a beard's shadow."""
    rows, columns = _TEXTURE_SIZE
    lon = (np.arange(columns) + 0.5) / columns * 2.0 * np.pi - np.pi
    lat = np.pi / 2.0 - (np.arange(rows) + 0.5) / rows * np.pi
    lon, lat = np.meshgrid(lon, lat)
    at_lon, at_lat = _longitude_latitude(marks - centre)
    skin = 1.0 + 0.025 * _noise(rng, _TEXTURE_SIZE, (1.2, 1.2))[..., None]
    skin = skin + 0.03 * _noise(rng, _TEXTURE_SIZE, (9.0, 9.0))[..., None] * [0.4, 1.0, 1.0]
    flush = sum(
        np.exp(-(((lon - side * at_lon[14] * 0.55) / 0.22) ** 2 + ((lat - at_lat[30]) / 0.2) ** 2))
        for side in (-1, 1)
    )
    skin = skin * (1.0 - flush[..., None] * [0.0, 0.06, 0.05])
    skin = skin * _freckles(lon, lat, at_lat[28], rng)
    lips = np.exp(
        -(((lon - at_lon[62]) / (at_lon[54] * 1.1)) ** 4)
        - 4.0 * ((lat - at_lat[62]) / (at_lat[51] - at_lat[57])) ** 4
    )
    skin = skin * (1.0 + 0.06 * lips * _noise(rng, _TEXTURE_SIZE, (6.0, 0.8)))[..., None]
    edge = np.interp(np.abs(lon), [0.0, 0.5, 1.1], [at_lat[33], at_lat[51], at_lat[3]])
    bearded = _smoothstep((edge - lat) / 0.12) * _smoothstep((1.4 - np.abs(lon)) / 0.3)
    stubble = rng.uniform(0.1, 0.22) + 0.07 * _noise(rng, _TEXTURE_SIZE, (0.8, 0.8))
    stubble = np.clip(stubble, 0.0, 0.5) * bearded * (1.0 - np.clip(2.0 * lips, 0.0, 1.0))
    skin = skin * (1.0 - stubble[..., None] * [1.0, 0.9, 0.8])
    throat = _smoothstep((at_lat[8] - lat) / 0.15)[..., None]  # there the map is stretched: plain
    return skin + throat * (1.0 - skin)


def _freckles(lon: np.ndarray, lat: np.ndarray, middle: float, rng: np.random.Generator):
    """Factors [h, w, 3] of spots around the nose, whose latitude is `middle`."""
    out = np.ones((*lon.shape, 3))
    rows, columns = lon.shape
    spots = zip(rng.normal(0.0, 0.45, 160), rng.normal(middle, 0.14, 160), strict=True)
    for spot_lon, spot_lat in spots:
        size, depth = rng.uniform(0.008, 0.018), rng.uniform(0.1, 0.3)
        j = int((spot_lon / (2.0 * np.pi) + 0.5) * columns)
        i = int((0.5 - spot_lat / np.pi) * rows)
        window = slice(i - 10, i + 11), slice(j - 10, j + 11)
        apart = (lon[window] - spot_lon) ** 2 + (lat[window] - spot_lat) ** 2
        out[window] *= 1.0 - depth * np.exp(-apart / size**2)[..., None] * [0.6, 0.9, 1.0]
    return out


def _paint_hair(rng: np.random.Generator) -> np.ndarray:
    strands = 0.22 * _noise(rng, _TEXTURE_SIZE, (40.0, 1.3)) + 0.12 * _noise(
        rng, _TEXTURE_SIZE, (20.0, 4.0)
    )
    return np.repeat(np.clip(1.0 + strands, 0.35, 2.0)[..., None], 3, -1)


def _paint_cloth(rng: np.random.Generator) -> np.ndarray:
    weave = 0.05 * _noise(rng, _TEXTURE_SIZE, (0.8, 0.8)) + 0.05 * _noise(
        rng, _TEXTURE_SIZE, (12.0, 12.0)
    )
    return np.repeat((1.0 + weave)[..., None], 3, -1)


_HAIR_COLOURS = ((0.20, 0.13, 0.08), (0.36, 0.22, 0.11), (0.55, 0.40, 0.22), (0.12, 0.11, 0.11))
_CLOTH_COLOURS = ((0.20, 0.30, 0.45), (0.40, 0.20, 0.22), (0.25, 0.36, 0.30), (0.35, 0.34, 0.38))


def _region(model: MorphableModel, name: str) -> int:
    return model.region_names.index(name)


def _surface(model: MorphableModel, shape: np.ndarray, albedo: np.ndarray, rng) -> _Surface:
    """The model of shape [V, 3] (neutral) and albedo [V, 3] with hair, cloth and its textures."""
    marks = shape[model.landmarks68]
    outside = np.isin(model.region, [_region(model, n) for n in ("face", "head_neck")])
    above = _above_jaw(shape, marks)
    scalp = shape[outside & (above > 0.0)]
    centre = _skull_centre(scalp, marks)
    hair, hair_triangles = _hair(scalp, marks, centre, rng)
    neck = _measure_neck(shape[outside], marks)
    cloth, cloth_triangles = _torso(marks, neck)
    first = np.cumsum([0, len(shape), len(hair)])
    drop = marks[8, 1] - shape[:, 1]
    under = (drop > 7.5) | ((drop > 3.5) & (np.abs(shape[:, 0]) > neck.wide + 0.3))  # of the cloth
    bare = model.triangles[~under[model.triangles].any(-1)]
    meshes = (bare, hair_triangles, cloth_triangles)
    triangles = np.concatenate([mesh + start for mesh, start in zip(meshes, first, strict=True)])
    part = np.repeat([_SKIN, _HAIR, _CLOTH], [len(mesh) for mesh in meshes])
    part[: len(bare)][~outside[bare].all(1)] = _INSIDE
    head = np.concatenate([np.where(outside, above, 1.0), np.ones(len(hair)), -np.ones(len(cloth))])
    tints = [rng.choice(_HAIR_COLOURS), rng.choice(_CLOTH_COLOURS)]
    colours = [albedo * heads.light_inside(model, marks)[:, None]]
    colours += [
        np.tile(tint, (len(mesh), 1)) for tint, mesh in zip(tints, (hair, cloth), strict=True)
    ]
    textures = [_paint_skin(marks, centre, rng), _paint_hair(rng), _paint_cloth(rng)]
    textures.append(np.ones_like(textures[0]))
    return _Surface(
        np.concatenate([shape, hair, cloth]).astype(np.float32),
        np.concatenate(colours).astype(np.float32),
        triangles.astype(np.int32),
        part.astype(np.int32),
        head.astype(np.float32),
        int(first[2]),
        centre.astype(np.float32),
        np.stack(textures).astype(np.float32),
    )


@numba.njit(cache=True, nogil=True)
def _vertex_normals(vertices, triangles):
    """Unit normals [V, 3] (area-weighted) of one mesh."""
    normals = np.zeros_like(vertices)
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ux, vx = vertices[b, 0] - vertices[a, 0], vertices[c, 0] - vertices[a, 0]
        uy, vy = vertices[b, 1] - vertices[a, 1], vertices[c, 1] - vertices[a, 1]
        uz, vz = vertices[b, 2] - vertices[a, 2], vertices[c, 2] - vertices[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for corner in (a, b, c):
            normals[corner, 0] += nx
            normals[corner, 1] += ny
            normals[corner, 2] += nz
    for v in range(vertices.shape[0]):
        x, y, z = normals[v, 0], normals[v, 1], normals[v, 2]
        scale = 1.0 / np.sqrt(max(x * x + y * y + z * z, 1e-20))
        normals[v, 0], normals[v, 1], normals[v, 2] = x * scale, y * scale, z * scale
    return normals


@numba.njit(cache=True, nogil=True, fastmath=True)
def _texel(textures, part, x, y, z):
    """Bilinear colour factor of a part's texture in the direction (x, y, z)."""
    rows, columns = textures.shape[1], textures.shape[2]
    u = (np.arctan2(x, z) / (2.0 * np.pi) + 0.5) * columns - 0.5
    v = (0.5 - np.arctan2(y, np.sqrt(x * x + z * z)) / np.pi) * rows - 0.5
    j, i = int(np.floor(u)), int(np.floor(v))
    fu, fv = u - j, v - i
    j0, j1 = j % columns, (j + 1) % columns
    i0, i1 = min(max(i, 0), rows - 1), min(i + 1, rows - 1)
    wa, wb, wc, wd = (1 - fu) * (1 - fv), fu * (1 - fv), (1 - fu) * fv, fu * fv
    t = textures[part]
    return (
        wa * t[i0, j0, 0] + wb * t[i0, j1, 0] + wc * t[i1, j0, 0] + wd * t[i1, j1, 0],
        wa * t[i0, j0, 1] + wb * t[i0, j1, 1] + wc * t[i1, j0, 1] + wd * t[i1, j1, 1],
        wa * t[i0, j0, 2] + wb * t[i0, j1, 2] + wc * t[i1, j0, 2] + wd * t[i1, j1, 2],
    )


@numba.njit(cache=True, nogil=True, fastmath=True)
def _compose(
    triangle, weight, far, light, rest, colour, triangles, part, head, centre, textures,
    image, mask, depth,
):  # fmt: skip
    """Colours a raster of twice the image's size over the background already in `image`.

    image [S, S, 3] float32 in 0..255, mask [S, S] bool and, where it is true, depth [S, S] (the
    mean of the raster's `far`) are written.
    """
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            red, green, blue, covered, inside, away = 0.0, 0.0, 0.0, 0, 0, 0.0
            for sub in range(4):
                si, sj = 2 * i + sub // 2, 2 * j + sub % 2
                t = triangle[si, sj]
                if t < 0:
                    continue
                covered += 1
                x, y, z = -centre[0], -centre[1], -centre[2]
                r, g, b = 0.0, 0.0, 0.0
                lr, lg, lb, above = 0.0, 0.0, 0.0, 0.0
                for k in range(3):
                    corner, w = triangles[t, k], weight[si, sj, k]
                    above += w * head[corner]
                    x += w * rest[corner, 0]
                    y += w * rest[corner, 1]
                    z += w * rest[corner, 2]
                    r += w * colour[corner, 0]
                    g += w * colour[corner, 1]
                    b += w * colour[corner, 2]
                    lr += w * light[corner, 0]
                    lg += w * light[corner, 1]
                    lb += w * light[corner, 2]
                if above > 0.0:
                    inside += 1
                    away += far[si, sj]
                if part[t] != _INSIDE:
                    tr, tg, tb = _texel(textures, part[t], x, y, z)
                    r, g, b = r * tr, g * tg, b * tb
                red += min(max(255.0 * r * lr, 0.0), 255.0)
                green += min(max(255.0 * g * lg, 0.0), 255.0)
                blue += min(max(255.0 * b * lb, 0.0), 255.0)
            rest_of_it = 1.0 - 0.25 * covered
            image[i, j, 0] = 0.25 * red + rest_of_it * image[i, j, 0]
            image[i, j, 1] = 0.25 * green + rest_of_it * image[i, j, 1]
            image[i, j, 2] = 0.25 * blue + rest_of_it * image[i, j, 2]
            if inside >= 2:
                mask[i, j], depth[i, j] = True, away / inside


class _Drawn(NamedTuple):
    """A picture, where it shows the head (hair, but no neck), and how far away that is."""

    picture: np.ndarray  # uint8 [S, S, 3]
    mask: np.ndarray  # bool [S, S]
    depth: np.ndarray  # float32 [S, S], cm along the camera's z axis, inf outside the mask


def _draw(
    surface: _Surface, world: np.ndarray, illumination: np.ndarray, camera: Camera, background
) -> _Drawn:
    """The surface with its vertices at `world` [V, 3], seen by a camera."""
    size = len(background)
    normals = _vertex_normals(world, surface.triangles)
    light = shading.sh_basis(normals) @ illumination.reshape(9, 3)
    uv, far = cameras.project(camera, world)
    seen = raster.rasterize(uv * (2 * size), far, surface.triangles, 2 * size, 2 * size)
    image, mask = background.copy(), np.zeros((size, size), bool)
    depth = np.full((size, size), np.inf, np.float32)
    _compose(
        seen.triangle, seen.barycentric, seen.depth, light.astype(np.float32), surface.rest,
        surface.colour, surface.triangles, surface.part, surface.head, surface.centre,
        surface.textures, image, mask, depth,
    )  # fmt: skip
    return _Drawn(np.round(image).astype(np.uint8), mask, depth)


def _background(size: int, rng: np.random.Generator) -> np.ndarray:
    """A blurred room [S, S, 3] float32 in 0..255."""
    height = np.linspace(0.0, 1.0, size)[:, None, None]
    top, bottom = rng.uniform(135, 175, 3), rng.uniform(70, 110, 3)
    room = top + (bottom - top) * height + np.zeros((size, size, 3))
    blobs = _noise(rng, (size, size), (size / 12, size / 12))[..., None]
    return np.clip(room + blobs * rng.uniform(6.0, 14.0, 3), 0, 255).astype(np.float32)


def _wander(rng: np.random.Generator, frames: int, seconds: float, columns: int = 1) -> np.ndarray:
    """Smooth random tracks [frames, columns] of unit deviation that change over `seconds`."""
    margin = int(4 * seconds * FPS)
    noise = rng.normal(size=(frames + 2 * margin, columns))
    smooth = gaussian_filter1d(noise, seconds * FPS / 2, axis=0)
    return (smooth / smooth.std(0))[margin : margin + frames]


def _add_face(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds what is not speech to mouth weights [T, 53]: blinks, brows, eyes, a passing smile."""
    frames = len(weights)
    out = weights.copy()

    def add(name: str, track: np.ndarray) -> None:
        for side in ("", "_L", "_R"):
            if name + side in EXPRESSION_NAMES:
                out[:, EXPRESSION_NAMES.index(name + side)] += track

    time = np.arange(frames) / FPS
    blink = np.zeros(frames)
    at = rng.uniform(0.8, 2.0)
    while at < frames / FPS:
        blink = np.maximum(blink, _smoothstep(1.6 - np.abs(time - at) / 0.075))
        at += rng.uniform(1.8, 5.0)
    add("eyeBlink", blink)
    brow = _wander(rng, frames, 0.6)[:, 0]
    add("browInnerUp", 0.35 * np.maximum(brow, 0.0).clip(0, 2) / 2)
    add("browOuterUp", 0.5 * np.maximum(brow, 0.0).clip(0, 2) / 2)
    add("browDown", 0.4 * np.maximum(-brow, 0.0).clip(0, 2) / 2)
    add("mouthSmile", 0.2 * _smoothstep(_wander(rng, frames, 1.5)[:, 0]))
    return np.clip(out, 0.0, 1.0).astype(np.float32)


def _poses(frames: int, neck: np.ndarray, start: np.ndarray, rng: np.random.Generator):
    """Head sway (yaw ±12°, pitch ±5°, roll ±3°) about the neck [3] (model frame).

    Returns:
        rotvec [T, 3] and translation [T, 3] (cm), about `start` [3].
    """
    rotvec = np.tanh(0.7 * _wander(rng, frames, 0.9, 3)) * np.radians([5.0, 12.0, 3.0])
    drift = np.tanh(_wander(rng, frames, 1.5, 3)) * np.array([0.5, 0.3, 0.8])
    frontal = cameras.FRONTAL @ neck
    turned = cameras.rotation_matrix(rotvec) @ frontal
    return rotvec.astype(np.float32), (start + drift + frontal - turned).astype(np.float32)


def _lights(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Illumination [T, 27]: even light and a warm lamp above one side, breathing by 3 %."""
    normals = rng.normal(size=(2000, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    lamp = np.array([rng.choice([-1.0, 1.0]) * rng.uniform(0.4, 0.8), -0.6, -0.9])
    facing = np.maximum(normals @ (lamp / np.linalg.norm(lamp)), 0.0)[:, None]
    irradiance = 0.42 * np.array([0.95, 1.0, 1.05]) + 0.72 * facing * [1.05, 1.0, 0.93]
    code = np.linalg.lstsq(shading.sh_basis(normals), irradiance, rcond=None)[0].reshape(-1)
    level = 1.0 + 0.03 * np.tanh(_wander(rng, frames, 2.0))
    return (level * code).astype(np.float32)


class _Speaker(NamedTuple):
    """Everything that is needed to draw any frame from any camera."""

    model: MorphableModel
    surface: _Surface
    neck: np.ndarray  # [3] about which the head sways
    truth: dict[str, np.ndarray]
    background: np.ndarray


@numba.njit(cache=True, nogil=True)
def _add_offsets(vertices, coefficients, vectors):
    """vertices[:V] += coefficients [K] times vectors [K, V, 3], most coefficients being zero."""
    for k in range(coefficients.size):
        weight = coefficients[k]
        if weight != 0.0:
            for v in range(vectors.shape[1]):
                for axis in range(3):
                    vertices[v, axis] += weight * vectors[k, v, axis]


def _world_vertices(speaker: _Speaker, frame: int) -> np.ndarray:
    """World positions [V, 3] of the surface; the cloth turns a fifth of what the head turns."""
    surface, truth = speaker.surface, speaker.truth
    moved = surface.rest.copy()
    _add_offsets(moved, truth["expression"][frame], speaker.model.expression_basis)
    rotvec, translation = truth["rotvec"][frame], truth["translation"][frame]
    head = cameras.head_pose(rotvec, translation)
    world = cameras.transform(head, moved)
    cloth = cameras.rotation_matrix(0.2 * rotvec) @ cameras.FRONTAL
    neck = cameras.transform(head, speaker.neck[None])[0]
    world[surface.cloth :] = (moved[surface.cloth :] - speaker.neck) @ cloth.T + neck
    return np.ascontiguousarray(world, np.float32)


def _codes(model: MorphableModel, weights: np.ndarray, rng: np.random.Generator) -> dict:
    """Identity [100], albedo [100] and expression [T, 79] of a speaker."""
    used = {name: weights[:, k] for k, name in enumerate(EXPRESSION_NAMES) if weights[:, k].any()}
    return {
        "identity": rng.normal(0.0, 0.6, 100).astype(np.float32),
        "albedo": rng.normal(0.0, 0.2, 100).astype(np.float32),
        "expression": morphable.expression_from_weights(model, used),
        "blendshapes": weights,
    }


def _displacement(
    model: MorphableModel, rng: np.random.Generator, most: float = _RELIEF
) -> np.ndarray:
    """A smooth relief [V, 3] (cm) along the rays from the head's middle, at most `most` high.

    Its root mean square over the face is about two thirds of that. It depends on the direction
    alone, so lids stay on eyeballs and lips on each other, and it ends below the chin.
    """
    radius = np.linalg.norm(model.mean, axis=-1, keepdims=True)
    direction = model.mean / radius
    waves = rng.normal(size=(3, 32))
    waves *= 2.0 * np.pi * np.median(radius) / _RELIEF_WAVE / np.linalg.norm(waves, axis=0)
    phase = rng.uniform(0.0, 2.0 * np.pi, 32)
    height = np.cos(direction @ waves + phase).sum(-1, keepdims=True)
    height /= np.sqrt(np.mean(height[model.region == _region(model, "face")] ** 2))
    below = model.mean[model.landmarks68[8], 1] - model.mean[:, 1:2]
    reach = most * _smoothstep(1.0 - below / 3.0)
    return (reach * np.tanh(1.3 * height) * direction).astype(np.float32)


def _speaker(
    prior: str, weights: np.ndarray, size: int, seed: int, relief: float = _RELIEF
) -> _Speaker:
    """A person with the mouth weights [T, 53] and everything else drawn from `seed`."""
    rng = np.random.default_rng([seed, 1])
    model = basis.load(prior)
    frames = len(weights)
    truth = _codes(model, _add_face(weights, rng), rng)
    truth["displacement"] = _displacement(model, np.random.default_rng([seed, 2]), relief)
    shape = morphable.vertices(model, truth["identity"], np.zeros(79, np.float32))
    shape = shape + truth["displacement"]
    truth["head_points"] = shape[model.landmarks68]
    albedo = np.clip(morphable.albedo(model, truth["albedo"]), 0.02, 0.95)
    surface = _surface(model, shape, albedo, rng)
    top, chin = surface.rest[: surface.cloth, 1].max(), shape[model.landmarks68[8], 1]
    distance = _FOCAL * (top - chin) / _HEAD_SHARE
    neck = np.array([0.0, chin - 3.0, surface.centre[2] - 2.0])
    start = np.array([0.0, (top + chin) / 2.0 - 1.0, distance])
    truth["rotvec"], truth["translation"] = _poses(frames, neck, start, rng)
    truth["illumination"] = _lights(frames, rng)
    truth["intrinsics"] = np.array([_FOCAL, _FOCAL, 0.5, 0.5], np.float32)
    return _Speaker(model, surface, neck.astype(np.float32), truth, _background(size, rng))


def _landmarks(speaker: _Speaker, size: int) -> dict[str, np.ndarray]:
    """points68 [T, 68, 2] and lips79 [T, 79, 2] in pixels of the recorded camera."""
    model, truth = speaker.model, speaker.truth
    chosen = np.concatenate([model.landmarks68, model.lips79])
    points = morphable.vertices(
        morphable.restrict(model, chosen), truth["identity"], truth["expression"]
    )
    points = points + truth["displacement"][chosen]
    head_to_world = cameras.head_pose(truth["rotvec"], truth["translation"])
    recorded = cameras.recorded(truth["intrinsics"])
    uv, _ = cameras.project(recorded, cameras.transform(head_to_world, points))
    pixels = (uv * size).astype(np.float32)
    return {"points68": pixels[:, :68], "lips79": pixels[:, 68:]}


class TurningClip(NamedTuple):
    """A head that turns from side to side, as a tracker gets it, and what it was made of.

    Attributes:
        model: the 3DMM.
        truth: as in truth.npz of `synthesize`, landmarks exact and in fractions of the image side.
        points68, lips79: [T, 68, 2] and [T, 79, 2] fractions of the image side, noisy.
        blendshapes: [T, 53], as wrong as a detector's: each with its own gain, and noisy.
        pictures, masks: uint8 [T, S, S, 3] and bool [T, S, S].
    """

    model: MorphableModel
    truth: dict[str, np.ndarray]
    points68: np.ndarray
    lips79: np.ndarray
    blendshapes: np.ndarray
    pictures: np.ndarray
    masks: np.ndarray


def turning_clip(
    prior: str,
    swing: float,
    seed: int = 0,
    frames: int = 200,
    size: int = 512,
    noise: float = 1.0,
    relief: float = 0.15,
) -> TurningClip:
    """A speaker whose head swings about the neck, to measure a tracker with.

    Args:
        prior: name of the 3DMM; swing: degrees of yaw to each side, in 4 s to and fro; noise:
            pixels by which each landmark is off in each frame; relief: cm that the surface lies
            off the model at most (two thirds of it are its root mean square).
    """
    _, _, weights = speech(frames / FPS, seed)
    speaker = _speaker(prior, weights, size, seed, relief)
    truth, rng = speaker.truth, np.random.default_rng([seed, 9])
    necks = cameras.transform(
        cameras.head_pose(truth["rotvec"], truth["translation"]),
        np.broadcast_to(speaker.neck, (frames, 1, 3)),
    )[:, 0]
    yaw = np.radians(swing) * np.sin(2 * np.pi * np.arange(frames) / (4 * FPS))
    truth["rotvec"][:, 1] = 0.2 * truth["rotvec"][:, 1] + yaw
    turned = cameras.rotation_matrix(truth["rotvec"]) @ cameras.FRONTAL
    truth["translation"] = (necks - turned @ speaker.neck).astype(np.float32)
    truth |= {name: points / size for name, points in _landmarks(speaker, size).items()}
    noisy = {
        name: (truth[name] + rng.normal(0, noise / size, truth[name].shape)).astype(np.float32)
        for name in ("points68", "lips79")
    }
    gained = truth["blendshapes"] * rng.uniform(0.6, 1.2, truth["blendshapes"].shape[1])
    blendshapes = np.clip(gained + rng.normal(0, 0.05, gained.shape), 0, 1).astype(np.float32)
    drawn = list(_pictures(speaker, cameras.recorded(truth["intrinsics"]), lambda: None))
    return TurningClip(
        speaker.model,
        truth,
        **noisy,
        blendshapes=blendshapes,
        pictures=np.stack([d.picture for d in drawn]),
        masks=np.stack([d.mask for d in drawn]),
    )


def _view_cameras(speaker: _Speaker, turns: np.ndarray) -> list[Camera]:
    """Cameras on a sphere about the head's mean place, at yaw and pitch `turns` [K, 2] degrees."""
    truth = speaker.truth
    head_to_world = cameras.head_pose(truth["rotvec"], truth["translation"])
    pivot = cameras.transform(head_to_world, speaker.surface.centre[None])[:, 0].mean(0)
    recorded = cameras.recorded(truth["intrinsics"])
    return [cameras.orbit(recorded, pivot, float(yaw), float(pitch)) for yaw, pitch in turns]


def _pictures(speaker: _Speaker, camera: Camera, step: Callable[[], None]) -> Iterator[_Drawn]:
    """Every frame from a camera, drawn on all cores, in order."""
    illumination = speaker.truth["illumination"]

    def one(frame: int) -> _Drawn:
        world = _world_vertices(speaker, frame)
        return _draw(speaker.surface, world, illumination[frame], camera, speaker.background)

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for block in range(0, len(illumination), 8 * workers):
            for drawn in pool.map(one, range(block, min(block + 8 * workers, len(illumination)))):
                step()
                yield drawn


def speech(seconds: float, seed: int) -> tuple[np.ndarray, list[Phone], np.ndarray]:
    """A small formant voice that says nothing in particular, and the mouth that says it.

    A Rosenberg source and noise go through resonators that move from phone to phone (Klatt, 1980);
    each phone has a mouth shape. Phrases of two speaking rates with pauses between them.

    Args:
        seconds: length; rounded to a whole frame at 25 fps.
        seed: of everything that is drawn by lot.

    Returns:
        audio [N] float32 in [-0.85, 0.85] at 16 kHz, whose sample 0 is frame 0; its phones; the
        blendshape weights [T, 53] in EXPRESSION_NAMES' order, each at its frame's middle.
    """
    rng = np.random.default_rng([seed, 0])
    frames = round(seconds * FPS)
    samples = frames * RATE // FPS
    utterance = _utterance(samples / RATE, rng)
    return _waveform(utterance, samples, rng), utterance.phones, _mouth(utterance, frames)


def synthesize(
    out: Path,
    seconds: float,
    views: int = 3,
    prior: str = "procedural",
    size: int = 256,
    seed: int = 0,
) -> Path:
    """Makes a speaker with sound whose codes, poses, landmarks, masks and other views are known.

    Writes the folder `out`, which appears when it is whole:
        video.mp4: 25 fps with sound, size × size; view_K.mp4: the same from other cameras.
        truth.npz: per frame expression [T, 79], rotvec and translation [T, 3] (`head_pose`),
            illumination [T, 27], points68 [T, 68, 2] and lips79 [T, 79, 2] (pixels), au and
            au_intensity [T, 5], blendshapes [T, 53]; constants identity and albedo [100],
            displacement [V, 3] (cm; what the surface lies off the model), head_points [68, 3]
            (cm; the landmarks in the head's frame, displaced, without expression), intrinsics [4],
            prior, view_yaw and view_pitch [K] (degrees), view_camera_to_world [K, 4, 4] (the
            intrinsics are shared), phone [P], phone_times [P, 2] (seconds).
        mask.npz: mask [T, size, size] bool, the head with its hair in video.mp4.
        front.npz (video.mp4) and view_K.npz: of every tenth frame its number, frames [F], mask
            [F, size, size] bool, and depth [F, size, size] (cm along the camera's z axis, inf
            outside the head).

    Args:
        out: folder to make (an empty one may be there).
        seconds: length, at least 1.
        views: how many other cameras (yaw ±30°, ±15°, ±45°, then pitch ±15°, yaw ±60°).
        prior: name of the morphable model.
        size: side of the pictures in pixels.
        seed: another seed is another person saying other things.

    Raises:
        UserError: `out` holds something or cannot be made, figures out of range, no such prior.
    """
    out = Path(out)
    _check(out, seconds, views, size)
    audio, phones, weights = speech(seconds, seed)
    speaker = _speaker(prior, weights, size, seed)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        _write(part, speaker, audio, phones, views)
        part.replace(out)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); choose another folder"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _check(out: Path, seconds: float, views: int, size: int) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out}: exists already; remove it or choose another folder")
    if seconds < 1:
        raise UserError(f"{out}: {seconds} s is too short; ask for at least 1 s")
    if not 0 <= views <= len(_VIEWS):
        raise UserError(f"{out}: {views} views; ask for 0 to {len(_VIEWS)}")
    if size < 32 or size % 2:
        raise UserError(f"{out}: pictures of {size} pixels; ask for an even size of at least 32")


def _write(folder: Path, speaker: _Speaker, audio, phones: list[Phone], views: int) -> None:
    """Draws all videos into `folder` and stores the truth beside them."""
    truth = speaker.truth | _landmarks(speaker, len(speaker.background))
    au, intensity = action_units.from_blendshapes(
        truth["blendshapes"], EXPRESSION_NAMES, truth["points68"]
    )
    turns = np.array(_VIEWS[:views], np.float32).reshape(-1, 2)
    others = _view_cameras(speaker, turns)
    truth |= {
        "au": au,
        "au_intensity": intensity,
        "prior": np.array(speaker.model.name),
        "view_yaw": turns[:, 0],
        "view_pitch": turns[:, 1],
        "view_camera_to_world": np.array([c.camera_to_world for c in others]).reshape(-1, 4, 4),
        "phone": np.array([phone.symbol for phone in phones]),
        "phone_times": np.array([phone[1:] for phone in phones], np.float32),
    }
    np.savez_compressed(folder / "truth.npz", **truth)
    with Progress() as progress:
        task = progress.add_task("synthesising", total=(1 + views) * len(truth["expression"]))
        film = partial(_film, folder, speaker, audio, partial(progress.advance, task))
        masks = film("video", "front", cameras.recorded(truth["intrinsics"]))
        np.savez_compressed(folder / "mask.npz", mask=masks)
        for k, camera in enumerate(others):
            film(f"view_{k}", f"view_{k}", camera)


def _film(
    folder: Path, speaker: _Speaker, audio, step, video: str, scan: str, camera: Camera
) -> np.ndarray:
    """Writes a camera's `video`.mp4 and what it sees of the head, `scan`.npz; all its masks."""
    masks, depths = [], []

    def pictures() -> Iterator[np.ndarray]:
        for frame, drawn in enumerate(_pictures(speaker, camera, step)):
            masks.append(drawn.mask)
            if frame % _KEPT == 0:
                depths.append(drawn.depth)
            yield drawn.picture

    write_video(folder / f"{video}.mp4", pictures(), audio, metadata=_METADATA)
    kept = np.arange(0, len(masks), _KEPT, dtype=np.int32)
    scan_of = {"frames": kept, "mask": np.stack(masks[::_KEPT]), "depth": np.stack(depths)}
    np.savez_compressed(folder / f"{scan}.npz", **scan_of)
    return np.stack(masks)
