"""A talking head to turn and to change: `notebooks/free_view.ipynb`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from t3d import plots, render
from t3d import run as runs
from t3d.run import Run, Speaker
from t3d.talker import Motion

YAWS = (-45, -30, -15, 0, 15, 30, 45)  # degrees, of the contact sheet
DEVIATIONS = (-3, -1.5, 0, 1.5, 3)  # of codes that are changed
LEFT = slice(9, 12)  # of the light's code: the band that comes from the image's left
LIGHTS = (-0.6, -0.3, 0.0, 0.3, 0.6)
MOST_SECONDS = 10.0


@dataclass(frozen=True)
class FreeView:
    """A speaker of a run that says something.

    Attributes:
        motion: of the T frames that the sound lasts; sound: [N] (16 kHz).
    """

    run: Run
    speaker: Speaker
    motion: Motion
    sound: np.ndarray

    @cached_property
    def opening(self) -> np.ndarray:
        """[T] of the mouth over the eye distance, as the codes have it."""
        return self.speaker.opening(self.motion.expression)

    def images(
        self,
        moments: Sequence[int],
        views: Sequence[tuple[float, float]],
        identity: Mapping[int, float] | None = None,
        albedo: Mapping[int, float] | None = None,
        light: float = 0.0,
        brightness: float = 1.0,
        standardised: bool = True,
    ) -> np.ndarray:
        """The head, still, at n moments from n views: uint8 [n, s, s, 3].

        Args:
            moments: frames of the motion; views: yaw and pitch of the camera, degrees.
            identity, albedo: what is added to codes, by number (σ).
            light: what is added from the image's right and taken from its left, as a share of the
                even light; brightness: of all light, times the speaker's own.
            standardised: sent through the Standardized Space; else as the field renders them.
        """
        tracks = [render.pose_track(self.speaker, 1, f"yaw={y:g},pitch={p:g}") for y, p in views]
        poses, cameras = (np.concatenate(parts) for parts in zip(*tracks))
        motion = Motion(*(part[list(moments)] for part in self._codes))
        changed = self.speaker
        if identity or albedo:
            codes = {"identity": identity, "albedo": albedo}
            codes = {name: _added(getattr(changed, name), by) for name, by in codes.items()}
            changed = replace(changed, **codes)
        lit = self.speaker.illumination.copy() * brightness
        lit[LEFT] -= light * lit[:3]
        lights = np.broadcast_to(lit, (len(poses), 27)).astype(np.float32)
        parts = runs.render_frames(
            self.run,
            changed,
            motion,
            poses,
            cameras,
            lights,
            standardised=standardised,
            batch=min(runs.BATCH, len(poses)),
        )
        name = "standardised" if standardised else "nerf"
        return np.concatenate([part[name] for part in parts])

    @property
    def _codes(self) -> tuple[np.ndarray, ...]:
        return self.motion.speech, self.motion.style, self.motion.expression


def with_sliders(draw: Callable[..., np.ndarray], **ranges: tuple[float, float, float, float]):
    """A picture with sliders: an ipywidgets.Box.

    Args:
        draw: slider's name → value, to an image uint8 [s, s, 3].
        ranges: slider's name → (least, most, step, where it stands at first).
    """
    import ipywidgets

    def slider(name, low, high, step, value):
        kind = ipywidgets.IntSlider if isinstance(step, int) else ipywidgets.FloatSlider
        limits = {"value": value, "min": low, "max": high, "step": step}
        return kind(**limits, description=name, continuous_update=False)

    sliders = {name: slider(name, *limits) for name, limits in ranges.items()}
    picture = ipywidgets.Image(format="png", width=384, height=384)

    def update(change=None):
        picture.value = plots.png(draw(**{name: s.value for name, s in sliders.items()}))

    for one in sliders.values():
        one.observe(update, "value")
    update()
    return ipywidgets.HBox([ipywidgets.VBox(list(sliders.values())), picture])


def _added(codes: np.ndarray, change: Mapping[int, float] | None) -> np.ndarray:
    changed = np.array(codes, np.float32)
    for number, value in (change or {}).items():
        changed[number] += value
    return changed


def open_view(
    workdir: str | Path,
    sound: str | Path | None = None,
    speaker: str | None = None,
    place: str | None = None,
) -> FreeView:
    """A speaker of a trained run that says `sound` (a file), or what it says in its test frames.

    Args:
        place: of its dataset, if that has moved.

    Raises:
        UserError: no such run or speaker, a stage that is missing, no such sound, a dataset that
            is not there any more.
    """
    run = runs.open_run(workdir)
    who = render.speaker_of(run, speaker)
    if sound:
        audio = render.read_speech(sound)[: int(MOST_SECONDS * render.RATE)]
        heard, frames = render.hear(run, who, audio), np.arange(render.frames_of(audio))
    else:
        dataset = runs.dataset_of(run, who, place)
        heard, frames = runs.hear_clip(run, who, dataset), runs.frames_of(dataset, "test")
        frames = frames[: int(MOST_SECONDS * render.FPS)]
        audio = runs.sound_of(dataset, frames)
    return FreeView(run, who, runs.motion_of(run, who, heard, frames), audio)


def contact_sheet(view: FreeView, standardised: bool = True) -> Image.Image:
    """The mouth closed and open from `YAWS`."""
    moments = {"mouth closed": view.opening.argmin(), "mouth open": view.opening.argmax()}
    labels = [f"{yaw:+d}°" for yaw in YAWS]
    turns = [(float(yaw), 0.0) for yaw in YAWS]
    return plots.sheet(
        [
            (title, view.images([int(k)] * len(YAWS), turns, standardised=standardised), labels)
            for title, k in moments.items()
        ]
    )


def code_sheet(view: FreeView, codes: Sequence[int] = (0, 1, 2)) -> Image.Image:
    """What the first codes of identity and albedo, and the light, change."""
    still = [int(np.argsort(view.opening)[len(view.opening) // 2])], [(0.0, 0.0)]
    rows = []
    for kind in ("identity", "albedo"):
        for code in codes:
            images = [view.images(*still, **{kind: {code: d}})[0] for d in DEVIATIONS]
            labels = [f"{d:+g} dev." if d else "as it is" for d in DEVIATIONS]
            rows.append((f"{kind}, code {code}", images, labels))
    images = [view.images(*still, light=light)[0] for light in LIGHTS]
    labels = [f"{light:+.0%}" if light else "as it is" for light in LIGHTS]
    return plots.sheet([*rows, ("light from the right", images, labels)])
