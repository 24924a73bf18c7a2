"""`t3d demo`: from nothing to a measured talking head, with no download and no camera."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy.io import wavfile

from t3d import config as configs
from t3d import evaluate, render, report, run
from t3d.checkpoint import writable_folder
from t3d.data import synthetic, video
from t3d.data.parts import write_atomically
from t3d.data.prepare import prepare
from t3d.data.speaker_dataset import SpeakerDataset

SECONDS, VIEWS, SEED = 36.0, 2, 0  # of the speaker
SPEECH_SECONDS, SPEECH_SEED = 8.0, 1  # of what it has never said
FILMS = {"talking.mp4": "front", "orbit.mp4": "orbit"}
RESULTS = (*FILMS, "sheet.png", "report.html", "metrics.json")


def demo(out: Path) -> dict[str, float | str]:
    """Synthesises a speaker, learns it, makes it speak and measures it.

    What is finished in the folder `out` is not done again.

    Returns:
        the figures of the evaluation.
    """
    writable_folder(out)
    speaker, dataset, workdir, speech = (
        out / name for name in ("speaker", "dataset", "run", "speech.wav")
    )
    if not speaker.exists():
        _say("1/6 synthesising a speaker")
        synthetic.synthesize(speaker, SECONDS, VIEWS, seed=SEED)
    _say("2/6 preparing it: tracking, masks, dataset")
    prepare(speaker, dataset)
    _say("3/6 training")
    run.train(configs.load_config("demo"), [SpeakerDataset(dataset)], workdir, log=_say)
    _say("4/6 speech it has never heard")
    if not speech.exists():
        audio, _, _ = synthetic.speech(SPEECH_SECONDS, SPEECH_SEED)
        _write_wav(speech, audio)
    _say("5/6 rendering")
    for name, camera in FILMS.items():
        if not (out / name).exists():
            _render(workdir, speech, camera, out / name)
    _say("6/6 measuring")
    return _measured(out, workdir, dataset, speaker)


def _say(line: str) -> None:
    print(line, flush=True)


def _write_wav(path: Path, audio: np.ndarray) -> None:
    samples = np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)
    write_atomically(path, lambda p: wavfile.write(p, video.RATE, samples))


def _render(workdir: Path, speech: Path, camera: str, out: Path) -> None:
    render.render_command(
        SimpleNamespace(
            workdir=workdir,
            audio=speech,
            camera=camera,
            out=out,
            output="standardised",
            size=256,
            speaker=None,
            features=None,
            composite=False,
            data=None,
        )
    )


def _measured(out: Path, workdir: Path, dataset: Path, speaker: Path) -> dict[str, float | str]:
    metrics = out / "metrics.json"
    if not metrics.exists():
        trained = run.open_run(workdir)
        found = evaluate.measure(trained, SpeakerDataset(dataset), "test", views=speaker)
        evaluate.write(out, trained, found)
    return json.loads(metrics.read_text())


def demo_command(args) -> None:
    """`t3d demo`."""
    started = time.monotonic()
    out = Path(args.out)
    report.show(demo(out))
    for name in RESULTS:
        print(out / name)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"done in {minutes} min {seconds} s")
