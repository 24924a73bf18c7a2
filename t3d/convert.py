"""`t3d convert`: other projects' public PyTorch checkpoints as weights that t3d reads.

A folder holds weights.npz, the arrays by name with batch normalisation folded in, and weights.json,
which says what they are, of which file they were made, and under what licence it was given.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t3d import __version__, assets, checkpoint
from t3d import config as configs
from t3d.errors import UserError
from t3d.peers import headnerf, syncnet, torch_file, wav2lip

WEIGHTS, ABOUT = "weights.npz", "weights.json"
_WAV2LIP = "personal, research and non-commercial use only (Wav2Lip's README: trained on LRS2)"
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Kind:
    """A network whose checkpoints can be converted.

    Attributes:
        file: where its weights are published, for a person.
        licence: of the weights.
        from_state: named tensors of the checkpoint → ours; ValueError names a wrong one.
    """

    file: str
    licence: str
    from_state: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


KINDS = {
    "wav2lip": Kind(
        "Wav2Lip's wav2lip.pth or wav2lip_gan.pth", _WAV2LIP, wav2lip.generator_from_state
    ),
    "sync-expert": Kind("Wav2Lip's lipsync_expert.pth", _WAV2LIP, wav2lip.expert_from_state),
    "syncnet-v2": Kind(
        "syncnet_python's syncnet_v2.model",
        assets.ASSETS["syncnet_v2"].licence,
        syncnet.from_state,
    ),
    "headnerf": Kind(
        "HeadNeRF's model_Reso32.pth, model_Reso32HR.pth or model_Reso64.pth",
        "academic or non-profit organization noncommercial research use only (HeadNeRF's README)",
        headnerf.from_state,
    ),
}


def convert_command(args) -> None:
    """`t3d convert`."""
    about = convert(args.kind, Path(args.file), Path(args.out), args.force)
    print(f"{args.out}: {about['kind']} of {args.file}; licence: {about['licence']}")
    if args.kind == "headnerf":
        print(f"train with: --config headnerf --init {args.out} {_settings(args.out)}")


def _settings(folder: str) -> str:
    """The overrides that make the config headnerf fit converted weights."""
    usual = dict(configs.flatten(configs.load_config("headnerf")))
    wanted = headnerf.settings_of(load(folder, "headnerf"))
    return " ".join(f"--config.{n}={v}" for n, v in wanted.items() if usual[n] != v)


def convert(kind: str, path: Path, out: Path, force: bool = False) -> dict:
    """Converts a checkpoint file; nothing that its pickle asks for is executed.

    Args:
        kind: one of KINDS.
        path: what torch.save wrote.
        out: the folder to make.
        force: replace converted weights that are there.

    Returns:
        what weights.json holds: kind, source, source_sha256, licence, sha256 (of the arrays, by
        checkpoint.params_sha256), t3d.

    Raises:
        UserError: `out` is not free; the file cannot be read, is hostile, or holds other tensors.
    """
    _check_free(out, force)
    state = torch_file.state_dict(path)
    try:
        weights = KINDS[kind].from_state(state)
    except ValueError as error:
        raise UserError(f"{path}: {error}; for {kind} give {KINDS[kind].file}") from error
    with path.open("rb") as file:
        source_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    about = {
        "kind": kind,
        "source": path.name,
        "source_sha256": source_sha256,
        "licence": KINDS[kind].licence,
        "sha256": checkpoint.params_sha256(weights),
        "t3d": __version__,
    }
    _write(out.resolve(), weights, about)
    return about


def kind_of(folder: str | Path) -> str | None:
    """Which kind of weights `convert` wrote into a folder; None if it wrote none.

    Raises:
        UserError: weights.json cannot be read.
    """
    path = Path(folder) / ABOUT
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())["kind"]
    except (*_UNREADABLE, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); use t3d convert again") from error


def load(folder: str | Path, kind: str) -> dict[str, np.ndarray]:
    """The weights that `convert` wrote, for the functions of the kind's module in peers/.

    Raises:
        UserError: no converted weights, of another kind, or not as they were written.
    """
    folder = Path(folder)
    again = f"convert {KINDS[kind].file} with t3d convert {kind}"
    try:
        about = json.loads((folder / ABOUT).read_text())
        found, sha256 = about["kind"], about["sha256"]
        with np.load(folder / WEIGHTS, allow_pickle=False) as arrays:
            weights = dict(arrays)
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no converted weights there; {again}") from error
    except (*_UNREADABLE, TypeError) as error:
        raise UserError(f"{folder}: cannot be read ({error}); {again}") from error
    if found != kind:
        raise UserError(f"{folder}: holds {found}, not {kind}; {again}")
    if checkpoint.params_sha256(weights) != sha256:
        raise UserError(f"{folder}: not the weights that were written there; {again}")
    return weights


def _check_free(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; choose a folder for --out")
    names = {path.name for path in out.iterdir()}
    ours = names == {WEIGHTS, ABOUT} and kind_of(out) in KINDS
    if names and not ours:
        raise UserError(f"{out}: holds other files; choose a new folder for --out")
    if ours and not force:
        raise UserError(f"{out}: holds converted weights; use --force to replace them")


def _write(out: Path, weights: dict[str, np.ndarray], about: dict) -> None:
    """Makes the folder under another name, so that `out` is whole or as before."""
    part = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        part.mkdir(parents=True)
        np.savez(part / WEIGHTS, **weights)
        (part / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
        if out.exists():
            shutil.rmtree(out)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
