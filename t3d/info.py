"""`t3d info`: what a dataset or a run is, how far it got and how it was made."""

from __future__ import annotations

import json
from pathlib import Path

from t3d import checkpoint
from t3d.data.parts import write_atomically
from t3d.errors import UserError


def describe(path) -> dict:
    """The make of a prepared dataset or of a run.

    Args:
        path: folder of `t3d prepare` (meta.json) or `t3d train` (run.json).

    Returns:
        A dataset's meta.json, or a run's run.json, with `kind` ('dataset' or 'run') and `path`.
        Each stage of a run has `finished`, the steps done, and the sha256 over the parameters as
        they are on disk now.

    Raises:
        UserError: the folder is neither, or its preparation was not finished.
    """
    path = Path(path)
    if (path / checkpoint.RUN_FILE).exists():
        return {"kind": "run", "path": str(path)} | _run(path)
    if (path / "meta.json").exists() or (path / "parts").exists():
        from t3d.data.speaker_dataset import read_meta

        return {"kind": "dataset", "path": str(path)} | read_meta(path)
    reason = "holds neither a prepared dataset nor a run" if path.exists() else "no such folder"
    raise UserError(f"{path}: {reason}; give a folder made by t3d prepare or t3d train")


def _run(path: Path) -> dict:
    record = checkpoint.read_run(path)
    stages = {name: dict(entry) for name, entry in record.get("stages", {}).items()}
    for folder in _subfolders(path / "params"):
        sha256 = checkpoint.params_sha256(checkpoint.load_params(folder))
        stages.setdefault(folder.name, {}).update(finished=True, sha256=sha256)
    for folder in _subfolders(path / "checkpoints"):
        entry = stages.setdefault(folder.name, {})
        if "steps" not in entry:
            saved = [int(p.name) for p in folder.iterdir() if p.name.isdigit()]
            entry["steps"] = max(saved, default=0)
    for entry in stages.values():
        entry.setdefault("finished", False)
    return record | {"stages": stages}


def _subfolders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.endswith(".new"))


def report(info: dict) -> str:
    """The same as text for a reader."""
    lines = _run_lines(info) if info["kind"] == "run" else _dataset_lines(info)
    versions = ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items())
    return "\n".join([f"{info['path']}: {info['kind']}", *lines, f"made with {versions}"])


def _dataset_lines(info: dict) -> list[str]:
    quality = info["quality"]
    stored = {name: [pair] for name, pair in info["splits"].items()}
    splits = ", ".join(
        f"{name} " + " and ".join(f"{first}–{end - 1}" for first, end in runs)
        for name, runs in info.get("frames", stored).items()
    )
    splits += f" (fold {info['fold']})" if info.get("fold") else ""
    return [
        f"source {info['source']} (sha256 {info['source_sha256']})",
        f"{info['num_frames']} frames at {info['fps']} fps, {info['size']} × {info['size']} pixels",
        f"3D model {info['prior']}, landmarks by {info['detector']}",
        f"splits {splits}",
        f"tracked {quality['tracked']:.1%}, reprojection {quality['reprojection']:.2%} of the eye "
        f"distance, mouth r {quality['mouth_r']:.3f}",
        *[f"warning: {text}" for text in info["warnings"]],
    ]


def _run_lines(info: dict) -> list[str]:
    lines = [f"data {d['name']}: {d['path']} (sha256 {d['sha256']})" for d in info.get("data", ())]
    for name, stage in info["stages"].items():
        state = "finished" if stage["finished"] else "not finished"
        sha256 = f", sha256 {stage['sha256']}" if "sha256" in stage else ""
        lines.append(f"stage {name}: {stage.get('steps', 0)} steps, {state}{sha256}")
    return [*lines, f"config {json.dumps(info.get('config', {}))}"]


def info_command(args) -> None:
    """`t3d info PATH [--json FILE]`."""
    info = describe(args.path)
    if args.json:
        text = json.dumps(info, indent=1, ensure_ascii=False) + "\n"
        write_atomically(Path(args.json), lambda path: path.write_text(text, encoding="utf-8"))
    print(report(info))
