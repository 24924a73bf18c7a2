"""What a training says while it runs: a line of progress, and TensorBoard's files."""

from __future__ import annotations

import contextlib
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from t3d.errors import UserError

LAG = 8  # steps that may be in flight before the oldest one's loss is waited for
SCALARS_EVERY = 1.0  # seconds
LINES_EVERY = 10.0  # seconds, where no bar can be drawn
MAX_BAD_STEPS = 10  # in a row


class NotFinite(UserError):
    """A training whose loss was not finite for long."""


class Events:
    """TensorBoard's file of a stage; one that cannot be written ends with a line, not the training.

    tensorboardX's SummaryWriter would write from a thread, which a full disk kills without a word.
    """

    def __init__(self, folder: Path, start: int, log: Callable[[str], None]):
        """Args: start: what earlier files hold of this step and later ones is hidden."""
        self.folder, self.log = folder, log
        self._file: EventsWriter | None = None
        with self._guarded():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = EventsWriter(str(folder / "events"))
        self._write(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, contents: Any) -> None:
        """Writes a summary of `tensorboardX.summary` at a step."""
        self._write(Event(step=step, summary=contents))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with self._guarded():
            if self._file:
                self._file.write_event(event)
                self._file.flush()

    def close(self) -> None:
        """Ends the file."""
        with self._guarded():
            if self._file:
                self._file.close()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._file = None
            self.log(
                f"{self.folder}: TensorBoard's file cannot be written ({error.strerror}); the "
                "training goes on without it"
            )


def read_scalars(folder: Path) -> dict[str, np.ndarray]:
    """What a stage's files hold: name → [N, 2] steps and values; {} where there are none.

    What a training wrote that was then continued from an earlier step is hidden.
    """
    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("*.tfevents.*")) if folder.is_dir() else ():
        for event in _events_of(path.read_bytes()):
            if event.session_log.status == SessionLog.START:
                for values in found.values():
                    for step in [step for step in values if step >= event.step]:
                        del values[step]
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
    return {name: np.array(sorted(values.items())) for name, values in found.items() if values}


def _events_of(data: bytes) -> Iterator[Event]:
    """The events of a file of TensorFlow records; a last one that is cut off is left out."""
    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)  # then a checksum, the event, a checksum
        if at + 16 + length > len(data):
            return
        yield Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length


class OnHost:
    """Metrics of a step that are fetched from the device once, when they are first looked at."""

    def __init__(self, metrics: dict[str, jax.Array]):
        self._metrics = metrics

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Waits for the step."""
        return jax.device_get(self._metrics)


class Monitor:
    """Watches the steps of one stage without making the device wait.

    Losses are looked at `LAG` steps late. Every `SCALARS_EVERY` seconds their means go to
    TensorBoard; progress is a bar on a terminal, else a line every `LINES_EVERY` seconds.
    """

    def __init__(
        self,
        name: str,
        start: int,
        steps: int,
        folder: Path | None,
        log: Callable[[str], None] = print,
        member: int | None = None,
    ):
        """Args: folder of TensorBoard's files, None: this host writes none; member: of a
        population, whose metrics are [M] arrays; the first one shows the progress."""
        self.name, self.steps, self.log = name, steps, log
        self.member, self._shows = member, folder is not None and not member
        self._events = folder and Events(folder, start, log)
        self._pending: deque = deque()
        self._window: list[dict[str, float]] = []
        self._means: dict[str, float] = {}
        self._began = self._scalars_at = self._line_at = time.monotonic()
        self._first: tuple[int, float] | None = None  # step taken, and when it was known
        self._bar = _bar(name, start, steps) if self._shows else None

    def __enter__(self) -> Monitor:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._events:
            self._events.close()
        if self._bar:
            self._bar.stop()

    def push(self, step: int, metrics: OnHost, batch: dict[str, Any]) -> None:
        """Takes the metrics (scalars, `bad_steps` among them) of the step made from the batch.

        Raises:
            NotFinite: the loss was not finite `MAX_BAD_STEPS` times in a row; not in a population,
                whose other members go on.
        """
        source = {key: batch[key] for key in ("speaker", "frame") if key in batch}
        self._pending.append((step, metrics, source))
        if len(self._pending) > LAG:
            self._take(*self._pending.popleft())
        now = time.monotonic()
        if now - self._scalars_at >= SCALARS_EVERY:
            self._scalars_at = now
            self._report(now)

    def drain(self) -> None:
        """Waits for all steps and reports them; raises as `push` does."""
        while self._pending:
            self._take(*self._pending.popleft())
        self._report(time.monotonic())

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes scalars at a step."""
        if self._events:
            named = {f"{self.name}/{key}": float(value) for key, value in values.items()}
            parts = [summary.scalar(key, value).value[0] for key, value in named.items()]
            self._events.add(step, Summary(value=parts))

    def images(self, step: int, images: dict[str, Any]) -> None:
        """Writes image grids {name: [N, H, W, 3] in [0, 1]} at a step."""
        for key, value in images.items() if self._events else ():
            grid = np.asarray(value, np.float32).clip(0, 1)
            self._events.add(step, summary.image(f"{self.name}/{key}", grid, dataformats="NHWC"))

    def _take(self, step: int, metrics: OnHost, source: dict[str, Any]) -> None:
        here = () if self.member is None else self.member
        values = {key: float(value[here]) for key, value in metrics.values.items()}
        self._step = step
        self._first = self._first or (step, time.monotonic())
        bad = int(values.pop("bad_steps"))
        if not bad:
            self._window.append(values)
        elif self.member is None:
            self._complain(step, bad, source)
        elif bad == MAX_BAD_STEPS:
            self.log(
                f"{self.name}: member {self.member}: the loss was not finite {bad} steps in a row "
                f"(up to step {step}); its updates are skipped, the others go on"
            )

    def _complain(self, step: int, bad: int, source: dict[str, Any]) -> None:
        self.log(
            f"{self.name}: step {step}: the loss or its gradient is not finite; "
            f"update skipped ({_describe(source)})"
        )
        if bad >= MAX_BAD_STEPS:
            raise NotFinite(
                f"stage {self.name}: the loss was not finite {bad} steps in a row (up to step "
                f"{step}); lower --config.stages.{self.name}.learning_rate, or look at the data of "
                f"{_describe(source)}"
            )

    def _report(self, now: float) -> None:
        if not self._window:
            return
        keys = self._window[0]
        self._means = {key: float(np.mean([w[key] for w in self._window])) for key in keys}
        self._window.clear()
        self.scalars(self._step, self._means)
        done = self._step + 1
        if self._bar:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=done, loss=f"loss {self._means['loss']:.4g}")
        elif self._shows and (now - self._line_at >= LINES_EVERY or done == self.steps):
            self._line_at = now
            self.log(self._line(done, now))

    def _line(self, done: int, now: float) -> str:
        said = f"{self.name}: step {done}/{self.steps}, loss {self._means['loss']:.4g}, "
        first, known = self._first
        if done - 1 == first:  # compilation is no step
            return said + f"compiled in {known - self._began:.3g} s"
        seconds = (now - known) / (done - 1 - first)
        left = seconds * (self.steps - done)
        return said + f"{seconds:.3g} s a step, {int(left) // 60}:{int(left) % 60:02} left"


def _bar(name: str, start: int, steps: int) -> Progress | None:
    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    columns = (
        TextColumn("{task.description:>7}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, refresh_per_second=2)
    bar.add_task(name, total=steps, completed=start, loss="compiling …")
    return bar


def _describe(source: dict[str, Any]) -> str:
    if "frame" not in source:
        return "its batch holds no frame numbers"
    frames = np.asarray(source["frame"]).reshape(-1)
    speakers = np.asarray(source.get("speaker", np.zeros_like(frames))).reshape(-1)
    pairs = sorted({(int(s), int(f)) for s, f in zip(speakers, frames)})
    return "speaker and frame " + ", ".join(f"{s}:{f}" for s, f in pairs)
