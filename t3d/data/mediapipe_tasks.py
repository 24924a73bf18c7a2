"""MediaPipe's tasks, opened quietly, with a remedy when this machine lacks their libraries."""

import contextlib
import os
import re
import sys
import tempfile
from pathlib import Path

from t3d.errors import UserError

_NOISE = re.compile(r"^([IW]\d{4} |INFO: |WARNING: (Logging before|All log messages))")


def open_task(kind: str, model: Path, mode: str = "IMAGE", **options):
    """A MediaPipe vision task (a context manager) of a class, say "FaceLandmarker".

    model: its file; mode: "IMAGE" or "VIDEO"; options: further fields of its Options class. Raises
    UserError when MediaPipe or the system libraries that it wants are missing, or the file is no
    model.
    """
    with _quiet_stderr(), _libraries_needed(), _model_wanted(model):
        from mediapipe.tasks.python import BaseOptions, vision

        settings = getattr(vision, f"{kind}Options")(
            base_options=BaseOptions(model_asset_path=str(model)),
            running_mode=vision.RunningMode[mode],
            **options,
        )
        return getattr(vision, kind).create_from_options(settings)


def to_image(frame):
    """uint8 [H, W, 3] RGB -> MediaPipe's image."""
    import mediapipe

    return mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=frame)


@contextlib.contextmanager
def _model_wanted(model: Path):
    try:
        yield
    except (RuntimeError, ValueError) as error:
        told = str(error).strip().splitlines()[0]
        raise UserError(
            f"{model}: no model that MediaPipe can use ({told}); run: t3d assets fetch {model.stem}"
        ) from error


@contextlib.contextmanager
def _libraries_needed():
    try:
        yield
    except (ImportError, OSError) as error:
        missing = re.search(r"lib[\w.+-]+\.so[\w.]*", str(error))
        if isinstance(error, ModuleNotFoundError) and error.name == "mediapipe":
            raise UserError("mediapipe is not installed; run: pip install mediapipe") from error
        if not missing:
            raise
        raise UserError(
            f"MediaPipe (finds faces) cannot load {missing[0]}; "
            "run: apt install libegl1 libgles2 libgl1"
        ) from error


@contextlib.contextmanager
def _quiet_stderr():
    """Holds back what native code writes to stderr; at the end all but its start-up chatter."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines():
                if not _NOISE.match(line):
                    print(line, file=sys.stderr)
