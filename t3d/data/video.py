"""Video and sound files in and out, on one clock, with PyAV."""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from t3d.errors import UserError

FPS = 25
RATE = 16000
SHORTEST = 1.0  # seconds
GAP = 0.1  # seconds that sound may stray from its time stamps
LEAPS = (-1.0, 3600.0)  # seconds; time stamps that go further back or on are not believed
NOT_PICTURES = ("tty", "image2")  # demuxers that make "video" of text files and of names


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds. Times in seconds; `sound_rate` in Hz, 0 without sound; size in pixels."""

    width: int
    height: int
    fps: float
    duration: float
    sound_rate: int


def probe(path) -> VideoInfo:
    """What a video file holds, by reading all its packets (nothing is decoded).

    Raises UserError: missing, empty, not a video, no picture in it, or truncated.
    """
    with _open(path) as container:
        stream = _picture_stream(container, path)
        times, last = _packet_times(container, stream)
        if len(times) == 0:
            raise UserError(f"{path}: holds no picture; give a complete video file")
        step = 1 / float(stream.average_rate or FPS)
        duration = times.max() - times.min() + step
        there, declared = duration, float((stream.duration or 0) * stream.time_base)
        if not declared:  # mkv and webm tell only how long all of it is
            there, declared = last, (container.duration or 0) / av.time_base
        if there < declared - max(0.5, 0.02 * declared):
            raise UserError(
                f"{path}: truncated: {there:.1f} s of {declared:.1f} s are there; copy it again"
            )
        sound = container.streams.audio
        rate = sound[0].codec_context.sample_rate if sound else 0
        return VideoInfo(stream.width, stream.height, 1 / step, float(duration), rate)


def probe_talking(path) -> VideoInfo:
    """What a clip to learn a speaker from holds.

    Raises UserError as `probe` does, and for a clip without sound or shorter than 1 s.
    """
    info = probe(path)
    if not info.sound_rate:
        raise UserError(f"{path}: has no sound; give a video in which the speaker is heard")
    if info.duration < SHORTEST - 1 / info.fps:
        raise UserError(
            f"{path}: lasts {info.duration:.2f} s; give at least {SHORTEST:.0f} s of speech"
        )
    return info


def read_frames(path, fps: int = FPS) -> Iterator[np.ndarray]:
    """The pictures of a video at `fps`, upright and with square pixels.

    Yields uint8 [H, W, 3] RGB; frame k shows the instant k / fps after the first picture. Frames of
    another rate are dropped or repeated to the nearest instant. Raises UserError as `probe` does.
    """
    with _open(path) as container:
        stream = _picture_stream(container, path)
        stream.thread_type = "AUTO"
        graph = turns = None
        with _decoding(path):
            for frame in container.decode(stream):
                if graph is None:
                    graph, turns = _frame_graph(stream, fps), round(frame.rotation / 90)
                graph.push(frame)
                yield from _pull_images(graph, turns)
            if graph is None:
                raise UserError(f"{path}: holds no picture; give a complete video file")
            graph.push(None)
            yield from _pull_images(graph, turns)


def read_audio(path, rate: int = RATE) -> np.ndarray:
    """The sound of a video or sound file, the mean of its channels.

    Returns float32 [N] in [-1, 1] at `rate` Hz. Sample 0 is the instant of the first picture (of
    the first sample where there is no picture), by the time stamps of both streams: late sound is
    led by silence, earlier sound is dropped. Sound that is missing in between is silence, sound
    that is there twice is dropped. Raises UserError: missing, empty, not a sound file, or without
    sound.
    """
    with _open(path) as container:
        if not container.streams.audio:
            raise UserError(f"{path}: has no sound; give a file in which the speaker is heard")
        stream = container.streams.audio[0]
        with _decoding(path):
            start, samples = _joined(container.decode(stream), rate)
        if start is None:
            raise UserError(f"{path}: its sound is empty; give a complete file")
    return np.clip(_shift(samples, round((start - _first_picture(path, start)) * rate)), -1, 1)


def at_length(samples: np.ndarray, frames: int) -> np.ndarray:
    """Samples [N] at `RATE`, cut or followed by silence, as long as so many frames at `FPS`."""
    return _to_count(samples, frames * RATE // FPS)


def write_video(path, frames: Iterable, audio=None, rate=RATE, fps=FPS, metadata=None) -> Path:
    """Writes H.264 (and AAC) as mp4, under a temporary name first: `path` is whole or absent.

    frames: uint8 [H, W, 3] RGB, at least one (odd sizes get their last row or column twice);
    audio: float [N] mono in [-1, 1] whose sample 0 is frame 0; metadata: {key: text} kept in the
    file. Raises UserError when the folder cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _check_writable(path)
        with av.open(
            str(temporary),
            "w",
            format="mp4",
            options={"movflags": "+use_metadata_tags+faststart"},
        ) as container:
            container.metadata.update(metadata or {})
            _encode(container, frames, audio, rate, fps)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def resize(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] or [H, W] -> uint8 [size, size, …] (or (height, width)), antialiased."""
    height, width = (size, size) if np.isscalar(size) else size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def crop(image: np.ndarray, box, size: int, fill: int | None = None) -> np.ndarray:
    """A square of an image, resized with antialiasing.

    image: uint8 [H, W, 3] or [H, W]; box: (cx, cy, side) in pixels (pixel centres at half
    integers; may reach outside). Returns uint8 [size, size, …]. Outside the image: the nearest
    edge pixel, or `fill`.
    """
    cx, cy, side = (float(v) for v in box)
    left, top = cx - side / 2, cy - side / 2
    height, width = image.shape[:2]
    margin = int(np.ceil(max(0, -left, -top, left + side - width, top + side - height))) + 1
    if margin > 1:
        pad = [(margin, margin), (margin, margin)] + [(0, 0)] * (image.ndim - 2)
        kind = {"mode": "edge"} if fill is None else {"constant_values": fill}
        image = np.pad(image, pad, **kind)
        left, top = left + margin, top + margin
    region = (left, top, left + side, top + side)
    picture = Image.fromarray(image)
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=region))


@contextlib.contextmanager
def _open(path):
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give a video or sound file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty; copy or download it again")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: cannot be read; check its permissions")
    try:
        container = av.open(f"file:{path}")  # a name with a colon is no protocol then
    except av.FFmpegError as error:
        raise UserError(
            f"{path}: not a complete video or sound file; give an mp4, mkv, webm, wav, …"
        ) from error
    with container:
        if container.format.name in NOT_PICTURES:
            raise UserError(f"{path}: not a video or sound file; give an mp4, mkv, webm, wav, …")
        yield container


@contextlib.contextmanager
def _decoding(path):
    try:
        yield
    except av.FFmpegError as error:
        raise UserError(f"{path}: damaged ({error.strerror}); copy or encode it again") from error


def _picture_streams(container) -> list:
    cover = av.stream.Disposition.attached_pic
    return [s for s in container.streams.video if not s.disposition & cover and s.codec_context]


def _picture_stream(container, path):
    streams = _picture_streams(container)
    if not streams:
        raise UserError(f"{path}: has no video stream; give a video of a person speaking")
    return streams[0]


def _packet_times(container, stream) -> tuple[np.ndarray, float]:
    """Presentation times in seconds of a stream's packets, and when the last of all ends."""
    times, last = [], 0.0
    for packet in container.demux():
        stamp = packet.dts if packet.pts is None else packet.pts
        if packet.size and stamp is not None:
            time = float(stamp * packet.time_base)
            last = max(last, time + float((packet.duration or 0) * packet.time_base))
            if packet.stream_index == stream.index:
                times.append(time)
    return np.array(times), last


def _joined(frames: Iterable, rate: int) -> tuple[float | None, np.ndarray]:
    """When the sound of some frames begins, in seconds (None without any), and its samples [N].

    What strays by more than `GAP` from the frames' time stamps is put in its place, if the next
    stamp says the same: a single one may be off. Stamps that leap beyond `LEAPS`, or to before the
    first one, are those of a clock that began anew.
    """
    resampler = av.AudioResampler(format="fltp", rate=rate)
    begin, pieces = None, [np.zeros(0, np.float32)]
    heard, start = 0.0, 0.0  # seconds of sound so far; the stamp that the first of them would have

    def add(frame) -> None:
        pieces.extend(f.to_ndarray().mean(0) for f in resampler.resample(frame))

    for frame, after in itertools.pairwise(itertools.chain(frames, [None])):
        if begin is None:
            begin = start = frame.time or 0.0
        length = frame.samples / frame.sample_rate
        strays = _strays(frame, start + heard)
        if not max(LEAPS[0], -heard) <= strays <= LEAPS[1]:
            start += strays
        elif abs(strays) > GAP and abs(_strays(after, start + heard + length) - strays) <= GAP:
            add(None)
            resampler = av.AudioResampler(format="fltp", rate=rate)
            heard += strays
            pieces = [_to_count(np.concatenate(pieces), round(heard * rate))]
        frame.pts = None
        add(frame)
        heard += length
    add(None)
    return begin, np.concatenate(pieces).astype(np.float32)


def _strays(frame, stamp: float) -> float:
    """Seconds that a frame's own time stamp, if it has one, is after this one."""
    return 0.0 if frame is None or frame.time is None else frame.time - stamp


def _to_count(samples: np.ndarray, count: int) -> np.ndarray:
    """The first so many samples, followed by silence where there are fewer."""
    return np.pad(samples[:count], (0, max(0, count - len(samples))))


def _first_picture(path, default: float) -> float:
    """Time stamp in seconds of the first picture; `default` for a file without pictures."""
    with _open(path) as container, _decoding(path):
        for stream in _picture_streams(container)[:1]:
            for frame in container.decode(stream):
                return frame.time or 0.0
    return default


def _frame_graph(stream, fps: int):
    graph = av.filter.Graph()
    chain = [
        graph.add_buffer(template=stream),
        graph.add("setpts", "PTS-STARTPTS"),
        graph.add("fps", f"{fps}"),
    ]
    if (stream.sample_aspect_ratio or 1) != 1:
        chain.append(graph.add("scale", "w=iw*sar:h=ih:flags=area"))
    chain += [graph.add("format", "pix_fmts=rgb24"), graph.add("buffersink")]
    graph.link_nodes(*chain).configure()
    return graph


def _pull_images(graph, turns: int) -> Iterator[np.ndarray]:
    while True:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        # A copy: FFmpeg's buffers are not for other threads to give back.
        yield np.array(np.rot90(frame.to_ndarray(), turns), order="C")


def _shift(samples: np.ndarray, late: int) -> np.ndarray:
    return samples[-late:] if late <= 0 else np.pad(samples, (late, 0))


def _check_writable(path: Path):
    if not path.parent.is_dir():
        raise UserError(f"{path}: its folder does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: cannot write in {path.parent}; choose another place")


def _encode(container, frames: Iterable, audio, rate: int, fps: int):
    frames = iter(frames)
    first = _even(next(frames, None))
    video = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast"})
    video.height, video.width = first.shape[:2]
    video.pix_fmt = "yuv420p"
    sound = None if audio is None else container.add_stream("aac", rate=rate, layout="mono")
    written = 0
    for index, image in enumerate(_chain(first, frames)):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(_even(image)), format="rgb24")
        frame.pts = index
        container.mux(video.encode(frame))
        if sound is not None:
            written = _encode_sound(container, sound, audio, written, (index + 1) * rate // fps)
    container.mux(video.encode(None))
    if sound is not None:
        _encode_sound(container, sound, audio, written, len(audio))
        container.mux(sound.encode(None))


def _chain(first, rest):
    yield first
    yield from rest


def _encode_sound(container, stream, audio, start: int, stop: int) -> int:
    samples = np.asarray(audio[start:stop], np.float32)
    if len(samples):
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = stream.rate, start
        container.mux(stream.encode(frame))
    return start + len(samples)


def _even(image: np.ndarray | None) -> np.ndarray:
    if image is None:
        raise ValueError("no frames to write")
    height, width = image.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return image
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
