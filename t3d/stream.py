"""Sound to motion while it is still being spoken: chunks in, codes out, the same as afterwards.

A frame's codes wait for what its window hears of the future (`look_ahead`), and for nothing else.
"""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from t3d import run as runs
from t3d import talker as talkers
from t3d.data import video
from t3d.data.pipeline import centred_start
from t3d.errors import UserError
from t3d.run import Run, Speaker
from t3d.speech import features
from t3d.talker import Motion

CHUNK = video.RATE // video.FPS  # samples of 40 ms: a frame's
CUT = 8  # mel steps (two windows of it) of known sound that are kept


def look_ahead(config: ConfigDict) -> float:
    """Seconds from the beginning of a frame to the last sample that its codes hang on."""
    last = centred_start(0, config.mel_steps) + config.mel_steps - 1
    later = runs.smooth_reach(config.speech.smooth) / video.FPS
    return (last * features.HOP + features.FFT / 2) / video.RATE + later


class Stream:
    """A speaker's motion in the making; equal to `run.motion_of` of the whole sound and the same
    voice.

        stream = Stream(run, speaker)
        for chunk in microphone:  # any length; 40 ms are one frame
            for codes in stream.push(chunk): ...
        for codes in stream.finish(): ...

    What no frame to come hangs on is forgotten.
    """

    def __init__(self, run: Run, speaker: Speaker, voice: np.ndarray | None = None):
        """Compiles the networks; stages up to `speech` are all it needs of the run.

        Args:
            voice: [2, 80] that will speak (`features.voice_of` a mel of some seconds of it); None:
                the speaker's own. `t3d render` hears the whole sound before it begins, and takes
                `voice_of(mel, speaker.voice)`.

        Raises:
            UserError: the run hears other features than the mel, which come in a file.
        """
        if run.config.features.file:
            raise UserError(
                f"{run.workdir}: hears {run.config.features.file}, not the mel; a stream needs a "
                "run trained without --config.features.file"
            )
        self._steps, self._deviation = run.config.mel_steps, run.config.speech.smooth
        self._reach = runs.smooth_reach(self._deviation)
        voice = speaker.voice if voice is None else voice
        known = voice[None], speaker.identity[None], speaker.identity_face[None]
        drive = runs.driver(run.talker)
        self._drive = lambda window: drive(run.params, window[None], *known)
        self._sound = _Tail(np.zeros(0, np.float32))
        self._mel = _Tail(np.zeros((0, features.BANDS), np.float32))  # what no later sound changes
        self._raw = _Tail(np.zeros((0, 3, 79), np.float32))  # motion before smoothing
        self._given, self._ended = 0, False
        self._move(np.zeros((self._steps, features.BANDS), np.float32))

    def push(self, chunk: np.ndarray) -> list[Motion]:
        """Takes the next samples (float, mono, 16 kHz, [-1, 1]).

        Returns:
            Motion of [79] arrays of every frame that is now known, in order; often none or one.

        Raises:
            UserError: other samples than those; the stream is at its end.
        """
        chunk = np.asarray(chunk)
        if chunk.ndim != 1 or not np.issubdtype(chunk.dtype, np.floating):
            raise UserError(
                f"a chunk of {chunk.dtype} {list(chunk.shape)}: give mono samples at 16 kHz, float "
                "in [-1, 1], [N] (int16 / 32768; the mean of two channels)"
            )
        if self._ended:
            raise UserError("the stream is finished; make another one for more sound")
        self._sound.extend(chunk.astype(np.float32))
        if self._sound.end > features.FFT:  # the first steps mirror what is still to come
            self._hear(1 + (self._sound.end - features.FFT // 2) // features.HOP)
        while self._window(self._raw.end)[1] <= self._mel.end:
            self._move_next()
        return self._give(self._raw.end - self._reach)

    def finish(self) -> list[Motion]:
        """The frames that waited for more, now that there is none; the stream is at its end."""
        self._ended = True
        if not self._sound.end:
            return []
        self._hear(1 + self._sound.end // features.HOP)
        while self._raw.end < max(1, round(self._sound.end / CHUNK)):  # as render.frames_of
            self._move_next()
        return self._give(self._raw.end)

    def _hear(self, until: int) -> None:
        """Adds the mel's steps up to `until`."""
        first = self._sound.first // features.HOP
        steps = features.mel(self._sound.kept)[self._mel.end - first : until - first]
        self._mel.extend(steps)
        # No step to come may see where the sound was cut.
        self._sound.forget(features.HOP * (self._mel.end - CUT))

    def _window(self, frame: int) -> tuple[int, int]:
        """First mel step and end of the window of a frame."""
        start = centred_start(frame, self._steps)
        return start, start + self._steps

    def _move_next(self) -> None:
        start, _ = self._window(self._raw.end)
        window = features.mel_window(self._mel.kept, start - self._mel.first, self._steps)
        self._raw.extend(self._move(window)[None])
        self._mel.forget(self._window(self._raw.end)[0])

    def _move(self, window: np.ndarray) -> np.ndarray:
        """[3, 79] speech, style and expression of a window."""
        with talkers.exact():
            motion = self._drive(window)
        return np.stack([motion.speech[0], motion.style[0], motion.expression[0]])

    def _give(self, until: int) -> list[Motion]:
        """The frames from the last one given up to `until`, smoothed."""
        if until <= self._given:
            return []
        smoothed = runs.smooth(self._raw.kept, self._deviation)
        frames = smoothed[self._given - self._raw.first : until - self._raw.first]
        self._given = until
        self._raw.forget(until - self._reach)
        return [Motion(*codes) for codes in frames]


class _Tail:
    """A growing series [T, …] of which only the end is kept; places in it stay what they were."""

    def __init__(self, empty: np.ndarray):
        self.kept, self.first = empty, 0

    @property
    def end(self) -> int:
        """How many elements there have been."""
        return self.first + len(self.kept)

    def extend(self, values: np.ndarray) -> None:
        self.kept = np.concatenate([self.kept, values])

    def forget(self, until: int) -> None:
        """Drops the elements before place `until`, but for the last one."""
        spare = int(np.clip(until - self.first, 0, max(0, len(self.kept) - 1)))
        self.kept, self.first = self.kept[spare:], self.first + spare
