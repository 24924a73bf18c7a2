"""The command line: reads arguments, looks whether results can be written, calls the command."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import importlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import t3d
from t3d import hosts, pages
from t3d.errors import UserError

INTERRUPTED = 130
OVERRIDE = "--config."
IN_JOBS = ("train", "sweep")  # commands that several hosts can run together
LASTING = (*IN_JOBS, "synthesize", "prepare", "render", "evaluate", "bench", "plan", "demo")
FOR_VIDEOS = ("judge", "openface_pred", "openface_truth", "out")  # evaluate without a run


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and name the nearest right word."""

    def error(self, message: str):
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            given, known = choice[1], re.findall(r"[\w-]+", choice[2])
            message = f"no {given!r}{_nearest(given, known)}; choose from {', '.join(known)}"
        self.exit(hosts.FAILED, f"t3d: error: {message} (see {self.prog} --help)\n")

    def options(self) -> list[str]:
        """Its option names."""
        return [name for action in self._actions for name in action.option_strings]

    def files(self) -> set[str]:
        """The arguments that name a file, not a folder, those of its own commands among them."""
        below = (a.choices.values() for a in self._actions if isinstance(a.choices, dict))
        named = {action.dest for action in self._actions if action.metavar == "FILE"}
        return named.union(*(sub.files() for subs in below for sub in subs))


def _nearest(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, known, 1, 0.5)
    return f", did you mean {close[0]}?" if close else ""


def _assets(args) -> None:
    from t3d import assets

    if args.action in (None, "list"):
        for row in assets.listing():
            where = row["path"] or "missing"
            print(f"{row['name']:<16} {where}\n{'':<16} {row['use']} ({row['licence']})")
    elif args.action == "fetch":
        fetchable = [name for name, asset in assets.ASSETS.items() if asset.url]
        for name in args.names or fetchable:
            print(f"{name}: {assets.fetch(name)}")
    else:
        print(f"{args.name}: {assets.import_file(args.name, args.file)}")


def _synthesize(args) -> None:
    from t3d.data.synthetic import synthesize

    synthesize(Path(args.out), args.seconds, args.views, args.prior, args.size, args.seed)
    print(f"{args.out}: a synthetic speaker; next: t3d prepare {args.out} --out DIR")


def _later(module: str, function: str) -> Callable:
    """A command that is imported when it is called: `t3d --help` loads no library."""
    return lambda args: getattr(importlib.import_module(module), function)(args)


def _seconds(text: str) -> float:
    value = _number(float, text)
    if not 1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: give 1 to 3600 seconds")
    return value


def _number(kind: type, text: str) -> int | float:
    try:
        return kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: is not a number") from error


def _size(text: str) -> int:
    value = _number(int, text)
    if not 32 <= value <= 2048 or value % 2:
        raise argparse.ArgumentTypeError(f"{text}: give an even number of pixels, 32 to 2048")
    return value


def _positive(text: str) -> int:
    value = _number(int, text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number of at least 1")
    return value


def _seeds(text: str) -> int:
    value = _number(int, text)
    if not 2 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text}: give 2 to 100 seeds")
    return value


def _camera(text: str) -> str:
    angle = r"-?\d+(\.\d+)?"
    if text not in ("front", "orbit", "recorded") and not re.fullmatch(
        rf"(yaw|pitch)={angle}(,(yaw|pitch)={angle})?", text
    ):
        raise argparse.ArgumentTypeError(
            f"{text!r}: give front, orbit, recorded, or degrees such as yaw=30,pitch=-10"
        )
    return text


def _add_hosts(sub: Parser) -> None:
    """The options of a command that several hosts can run as one job."""
    job = sub.add_argument_group("several hosts as one job (docs/scaling.md)")
    job.add_argument(
        "--distributed",
        action="store_true",
        help="this is one process of a job whose cluster tells the rest: Slurm, Cloud TPU, GKE",
    )
    job.add_argument("--coordinator", metavar="HOST:PORT", help="else: where process 0 listens,")
    job.add_argument("--processes", type=int, metavar="N", help="how many there are,")
    job.add_argument("--process", type=int, metavar="K", help="and which one this is, from 0")


def parser() -> tuple[Parser, dict[str, Parser]]:
    """The program's parser, and that of each command."""
    top = Parser(prog="t3d", description=t3d.__doc__, allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"t3d {t3d.__version__}")
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    by_name = {}

    def command(name: str, text: str, run: Callable, outputs: Sequence[str] = ()) -> Parser:
        sub = commands.add_parser(
            name, help=text, description=text, parents=[debug], allow_abbrev=False
        )
        sub.set_defaults(run=run, outputs=outputs)
        by_name[name] = sub
        return sub

    sub = command(
        "prepare",
        "make a dataset of a video of one person speaking",
        _later("t3d.data.prepare", "prepare_command"),
        ["out", "json"],
    )
    sub.add_argument("video", help="a video, or a folder made by t3d synthesize")
    sub.add_argument("--out", metavar="DIR", help="the dataset's folder")
    sub.add_argument(
        "--report", action="store_true", help="say how good the video is, and make nothing"
    )
    sub.add_argument("--json", metavar="FILE", help="write the figures of the video there")
    sub.add_argument("--prior", help="3D head model: ict (default), procedural, bfm09 or bfm17")
    sub.add_argument("--size", type=_size, default=256, help="side of the images in pixels (256)")
    sub.add_argument(
        "--fold", type=int, metavar="K", help="part 0 to 4 to test on, of a clip under 30 s (0)"
    )
    sub.add_argument(
        "--hold-out-yaw",
        type=float,
        metavar="DEGREES",
        help="test on the frames turned further than this from the middle",
    )
    sub.add_argument("--openface", metavar="CSV", help="take the AU labels from OpenFace's table")
    sub.add_argument("--force", action="store_true", help="replace a dataset that is there")

    sub = command(
        "train",
        "train a talker; a stopped training is continued",
        _later("t3d.run", "train_command"),
        ["workdir"],
    )
    sub.add_argument("--config", default="preview", help="name of a config, or its file (preview)")
    sub.add_argument("--data", required=True, metavar="DIR[,DIR…]", help="prepared datasets")
    sub.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder")
    sub.add_argument("--stage", help="train this stage only")
    sub.add_argument(
        "--init",
        metavar="DIR",
        help="start the field from converted weights (t3d convert headnerf): config.nerf.init",
    )
    _add_hosts(sub)
    sub.epilog = "--config.KEY=VALUE overrides a value, for instance --config.nerf.samples=32"

    sub = command(
        "render",
        "make a trained talker speak",
        _later("t3d.render", "render_command"),
        ["out"],
    )
    sub.add_argument("--workdir", required=True, metavar="DIR", help="a trained run")
    sub.add_argument("--audio", required=True, metavar="FILE", help="a WAV, or a video's sound")
    sub.add_argument(
        "--features",
        metavar="FILE",
        help="that sound's features (.npy), for a run trained with config.features.file",
    )
    sub.add_argument(
        "--camera",
        type=_camera,
        help="front (default), orbit, recorded, or degrees: yaw=30,pitch=-10",
    )
    sub.add_argument(
        "--composite",
        action="store_true",
        help="put the head back into its recording, torso and background as filmed",
    )
    sub.add_argument("--data", metavar="DIR", help="with --composite: its dataset, if it has moved")
    sub.add_argument("--out", required=True, metavar="FILE", help="the mp4 to write")
    sub.add_argument(
        "--output",
        choices=("standardised", "nerf"),
        default="standardised",
        help="the decoder's image (default) or the radiance field's",
    )
    sub.add_argument("--size", type=_size, help="side of the video in pixels")
    sub.add_argument("--speaker", metavar="NAME", help="which, if it has learned several (first)")

    sub = command(
        "evaluate",
        "measure a trained talker on frames it has not seen, or any video against the true one",
        _later("t3d.evaluate", "evaluate_command"),
        ["workdir", "out", "json"],
    )
    sub.add_argument("--json", metavar="FILE", help="write the figures there")
    trained = sub.add_argument_group("a trained run")
    trained.add_argument("--workdir", metavar="DIR", help="the run")
    trained.add_argument("--split", choices=("test", "validation"), default="test")
    trained.add_argument(
        "--speaker", metavar="NAME", help="which, if it has learned several (first)"
    )
    trained.add_argument("--data", metavar="DIR", help="where its dataset is now, if it has moved")
    trained.add_argument(
        "--against", metavar="DIR", help="another evaluated run: tell the paired differences"
    )
    trained.add_argument(
        "--views",
        nargs="?",
        const="",
        metavar="DIR",
        help="measure turned views, too; DIR: of the synthetic speaker, whose cameras are known",
    )
    trained.add_argument(
        "--speech",
        action="store_true",
        help="measure only what its audio codes say of content and of speaker; the stages up to "
        "speech will do (--data DIR,DIR: of all its speakers)",
    )
    trained.add_argument(
        "--space",
        action="store_true",
        help="measure only what its Standardized Space keeps and what it brings back",
    )
    videos = sub.add_argument_group("any two videos")
    videos.add_argument("--pred", metavar="FILE", help="a generated video")
    videos.add_argument("--truth", metavar="FILE", help="the true one")
    videos.add_argument(
        "--judge", metavar="DIR", help="who judges the lips: a run's SyncNet, or converted weights"
    )
    videos.add_argument("--openface-pred", metavar="CSV", help="OpenFace's AUs of the one")
    videos.add_argument("--openface-truth", metavar="CSV", help="and of the other")
    videos.add_argument("--out", metavar="DIR", help="write report.html and the figures there")

    sub = command(
        "sweep",
        "train and measure the variants of a config, and print their tables",
        _later("t3d.sweep", "sweep_command"),
        ["out", "json"],
    )
    sub.add_argument("--config", default="ablations", help="name of a sweep, or its file")
    sub.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="[GROUP=]DIR[,DIR…]",
        help="prepared datasets, each trained by itself; a table for each group",
    )
    sub.add_argument("--out", required=True, metavar="DIR", help="the folder of its runs")
    sub.add_argument(
        "--start-from", metavar="DIR", help="a run whose finished stages are taken where they fit"
    )
    sub.add_argument("--json", metavar="FILE", help="write the figures there")
    sub.add_argument(
        "--seeds", type=_seeds, metavar="N", help="train each variant with the seeds 0 to N-1"
    )
    sub.add_argument(
        "--launcher",
        choices=("local", "slurm", "jobset", "sky"),
        default="local",
        help="train here (default), or make each training a job: of Slurm, Kubernetes, SkyPilot",
    )
    sub.add_argument(
        "--launcher-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what its jobs need, for instance partition=gpu",
    )
    sub.add_argument(
        "--population",
        action="store_true",
        help="train members that differ in numbers alone (seeds, rates, weights, speakers) as one "
        "program",
    )
    sub.add_argument("--dry-run", action="store_true", help="tell what would be done or written")
    sub.add_argument(
        "--member", type=int, metavar="K", help="train and measure this one only: what a job does"
    )
    sub.add_argument(
        "--collect", action="store_true", help="train nothing: the tables of what is finished"
    )
    _add_hosts(sub)
    sub.epilog = "--config.KEY=VALUE overrides a value in every variant"

    sub = command(
        "plan",
        "compile a training step for a cluster that is not there, and predict its time",
        _later("t3d.plan", "plan_command"),
        ["json", "plot"],
    )
    sub.add_argument("--config", default="talker", help="name of a config, or its file (talker)")
    sub.add_argument(
        "--topology",
        required=True,
        metavar="CHIP:SHAPE",
        help="TPUs v5e:16x16, v5p:4x4x4; GPUs h100:8, h200:4x8 (hosts x GPUs); cpu: this machine",
    )
    sub.add_argument("--stage", default="nerf", help="of the training (nerf)")
    sub.add_argument(
        "--global-batch",
        type=_positive,
        metavar="N",
        help="frames of a step on all chips (the config's batch on each part of mesh.data)",
    )
    sub.add_argument(
        "--frames", type=_positive, default=7500, help="of all speakers (7500: 5 minutes)"
    )
    sub.add_argument("--json", metavar="FILE", help="write the figures there")
    sub.add_argument("--plot", metavar="FILE", help="draw efficiency over chips there, as PNG")
    sub.add_argument(
        "--check",
        action="store_true",
        help="with --topology cpu: also take steps, and tell predicted from measured times",
    )
    sub.epilog = "--config.KEY=VALUE overrides a value, for instance --config.mesh.model=4"

    sub = command(
        "bench",
        "measure: the input, what a population and the caches save, the tracker, what is heard, "
        "the radiance field",
        _later("t3d.bench", "bench_command"),
        ["json", "out"],
    )
    sub.add_argument("what", choices=("data", "population", "startup", "prior", "speech", "nerf"))
    sub.add_argument("--config", default="preview", help="name of a config, or its file (preview)")
    sub.add_argument(
        "--data", metavar="DIR[,DIR…]", help="prepared datasets (prior: also without any)"
    )
    sub.add_argument(
        "--stage",
        help="of the training (data: all, else: nerf); speech: the last one, speech or lip",
    )
    sub.add_argument("--members", type=int, default=8, help="of the population (8)")
    sub.add_argument("--plan", metavar="FILE", help="of t3d plan --json: the workers that it needs")
    sub.add_argument(
        "--run",
        dest="runs",
        metavar="RUN[,RUN…]",
        help="prior: measure the encoder of this run of t3d train on the test frames of --data, or "
        "of one run for each dataset; without --run there are no figures of encoders; nerf: time "
        "frames of these runs' heads, and nothing else",
    )
    sub.add_argument(
        "--prepare",
        metavar="VIDEO",
        help="prior: time t3d prepare on this video at 512 pixels; without it there are no such "
        "figures",
    )
    sub.add_argument(
        "--out", metavar="DIR", help="speech: folder of the six runs, which is gone on with"
    )
    sub.add_argument(
        "--voice", metavar="FILE", help="speech: another voice, to tell how it moves the mouth"
    )
    sub.add_argument("--json", metavar="FILE", help="write the figures there")

    sub = command(
        "demo",
        "synthesise a speaker, learn it, make it speak, measure it",
        _later("t3d.demo", "demo_command"),
        ["out"],
    )
    sub.add_argument("--out", default="demo", metavar="DIR", help="folder of the results (demo)")

    sub = command("synthesize", "make a speaker whose truth is known", _synthesize, ["out"])
    sub.add_argument("--out", required=True, metavar="DIR")
    sub.add_argument("--seconds", type=_seconds, default=60.0, help="length (60)")
    sub.add_argument("--views", type=int, default=3, help="further cameras (3)")
    sub.add_argument("--prior", default="procedural", help="procedural (default) or ict")
    sub.add_argument("--size", type=_size, default=256, help="side in pixels (256)")
    sub.add_argument("--seed", type=int, default=0, help="another seed, another speaker (0)")

    sub = command(
        "info",
        "tell what a dataset or a run is and how it was made",
        _later("t3d.info", "info_command"),
        ["json"],
    )
    sub.add_argument("path", help="folder of a dataset or a run")
    sub.add_argument("--json", metavar="FILE", help="write it there")

    sub = command("assets", "list, fetch or import model files", _assets)
    actions = sub.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="what there is and where", parents=[debug])
    fetch = actions.add_parser("fetch", help="download from the public homes", parents=[debug])
    fetch.add_argument(
        "names", nargs="*", metavar="NAME", help="all that have a home, if none is named"
    )
    add = actions.add_parser("import", help="take a file you have", parents=[debug])
    add.add_argument("name", metavar="NAME")
    add.add_argument("file", metavar="FILE")

    sub = command(
        "convert",
        "make weights of another project's PyTorch checkpoint, without running what is in it",
        _later("t3d.convert", "convert_command"),
        ["out"],
    )
    sub.add_argument(
        "kind",
        choices=("wav2lip", "sync-expert", "syncnet-v2", "headnerf"),
        help="Wav2Lip's generator, its sync expert, syncnet_python's network, or HeadNeRF",
    )
    sub.add_argument("file", metavar="FILE", help="what torch.save wrote (.pth, .model)")
    sub.add_argument("--out", required=True, metavar="DIR", help="the folder to make")
    sub.add_argument("--force", action="store_true", help="replace weights that are there")

    sub = command(
        "prior", "look at a 3D head model", _later("t3d.prior_sheet", "show_command"), ["out"]
    )
    actions = sub.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="draw what its codes do, as one PNG", parents=[debug])
    show.add_argument("model", metavar="MODEL", help="procedural, ict, bfm09 or bfm17")
    show.add_argument("--out", required=True, metavar="FILE", help="the PNG to write")
    show.add_argument(
        "--coefficients",
        metavar="NAME=VALUE,…",
        help="also draw this head: jawOpen=0.7 (weight), identity0=-2, albedo3=1 (σ)",
    )
    return top, by_name


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes `--config.KEY=VALUE` and `--config.KEY VALUE` out: (the others, ['KEY=VALUE', …])."""
    rest, overrides = [], []
    waiting = iter(arguments)
    for argument in waiting:
        if not argument.startswith(OVERRIDE):
            rest.append(argument)
        elif "=" in argument:
            overrides.append(argument.removeprefix(OVERRIDE))
        else:
            value = next(waiting, "")
            if not value or value.startswith("--"):
                raise UserError(f"{argument}: has no value; write {argument}.KEY=VALUE, or =VALUE")
            overrides.append(f"{argument.removeprefix(OVERRIDE)}={value}")
    return rest, overrides


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments; exits with one line and code 2 when they are wrong."""
    top, by_name = parser()
    rest, overrides = split_overrides(arguments)
    args, unknown = top.parse_known_args(rest)
    sub = by_name[args.command]
    if overrides and args.command not in ("train", "sweep", "bench", "plan"):
        unknown.append(f"{OVERRIDE}{overrides[0]}")
    if unknown:
        options = [word for word in unknown if word.startswith("-")]
        given = (options or unknown)[0]
        sub.error(f"unknown option {given}{_nearest(given.split('=')[0], sub.options())}")
    args.overrides = overrides
    args.files = sub.files()
    if getattr(args, "init", None):
        args.overrides.append(f"nerf.init={args.init}")
    if args.command == "evaluate":
        _check_evaluate(sub, args)
    if args.command == "render":
        _check_render(sub, args)
    if args.command in IN_JOBS:
        _check_hosts(sub, args)
    return args


def _check_hosts(sub: Parser, args: argparse.Namespace) -> None:
    """All three of a job's facts, or none; `args.in_job` says whether there is a job."""
    given = [getattr(args, name) is not None for name in ("coordinator", "processes", "process")]
    if any(given) and not all(given):
        sub.error("--coordinator, --processes and --process belong together: give all three")
    if all(given) and not 0 <= args.process < args.processes:
        sub.error(f"--process {args.process}: give 0 to {args.processes - 1}")
    args.in_job = args.distributed or all(given)


def _check_render(sub: Parser, args: argparse.Namespace) -> None:
    """The recording has one camera, and only --composite reads it."""
    if args.composite and args.camera not in (None, "recorded"):
        sub.error(f"--camera {args.camera}: --composite shows the recorded camera; leave one out")
    if args.data and not args.composite:
        sub.error("--data belongs to --composite; leave it out")
    if Path(args.out).suffix.lower() != ".mp4":
        sub.error(f"--out {args.out}: name an .mp4")


def _check_evaluate(sub: Parser, args: argparse.Namespace) -> None:
    """Either a run or two videos."""
    if bool(args.pred) != bool(args.truth):
        sub.error("--pred and --truth belong together: give both videos")
    if bool(args.pred) == bool(args.workdir):
        sub.error("give either --workdir RUN, or --pred FILE and --truth FILE")
    other = ("speaker", "data", "against", "views") if args.pred else FOR_VIDEOS
    for name in other:
        if getattr(args, name) is not None:
            mode = "--pred and --truth" if args.pred else "--workdir"
            sub.error(f"--{name.replace('_', '-')} does not go with {mode}")
    if args.speech and args.space:
        sub.error("--speech does not go with --space: ask for one after the other")
    if args.speech:  # of all speakers, on test frames, and nothing is rendered
        _check_alone(sub, args, "--speech", ("speaker", "against", "views", "split"))
    if args.space:
        _check_alone(sub, args, "--space", ("against", "views"))


def _check_alone(sub: Parser, args: argparse.Namespace, mode: str, others: tuple[str, ...]) -> None:
    """A measurement of a run that these other options do not go with."""
    if args.pred:
        sub.error(f"{mode} does not go with --pred and --truth")
    for name in others:
        if getattr(args, name) != sub.get_default(name):
            sub.error(f"--{name} does not go with {mode}")


def check_writable(path: Path, file: bool = False) -> None:
    """Raises UserError unless a folder, or a `file`, can be written at `path` (nothing is made)."""
    if file and path.is_dir():
        raise UserError(f"{path}: is a folder; name the file to write")
    if not file and path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; name a folder")
    there = path.parent if path.is_file() else path  # files are written beside, and renamed
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() and there != path:
        raise UserError(f"{path}: {there} is a file, not a folder; choose another place")
    if not os.access(there, os.W_OK):
        raise UserError(f"{path}: no permission to write in {there}; choose another place")


def _explain(error: OSError) -> str:
    """One line for what the operating system refused."""
    where = f"{error.filename}: " if error.filename else ""
    remedies = {
        errno.ENOSPC: "no space left on the disk; free some and run the same command again",
        errno.EDQUOT: "your disk quota is used up; free some space and run the same command again",
        errno.EACCES: "no permission; choose another place or change its permissions",
        errno.EPERM: "no permission; choose another place or change its permissions",
        errno.EROFS: "the file system is read-only; choose another place",
        errno.ENOENT: "no such file; check the path",
        errno.EEXIST: "is there already; choose another place",
        errno.ENOTDIR: "a part of this path is a file, not a folder; check the path",
        errno.EISDIR: "is a folder; give a file",
    }
    return where + remedies.get(error.errno, str(error.strerror or error))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `t3d`.

    Returns:
        the exit code: 0; 2 for what the user can mend; 130 or 143 when interrupted or terminated,
        with all saved; 75 when another host of the job was lost or failed.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        args = parse(arguments)
    except SystemExit as stop:
        return stop.code or 0
    except UserError as error:
        print(f"t3d: error: {error}", file=sys.stderr)
        return hosts.FAILED
    in_job = getattr(args, "in_job", False)
    if in_job and hosts.CHILD not in os.environ:
        return hosts.supervise(arguments)
    _keep_compiled_programs()
    if not args.debug:  # libraries' own accounts of what our line says
        logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        if in_job:
            hosts.join(args.coordinator, args.processes, args.process)
        for name in args.outputs:
            if getattr(args, name):
                check_writable(Path(getattr(args, name)), name in args.files)
        with _unread_output() if args.command in LASTING else contextlib.nullcontext():
            args.run(args)
            sys.stdout.flush()
        return 0
    except KeyboardInterrupt as error:
        message, code, shown = "stopped; run the same command again to go on", INTERRUPTED, error
    except UserError as error:
        message, code, shown = str(error), hosts.FAILED, error
    except BrokenPipeError:  # the reader of our output has gone: `t3d info … | head`
        _to_nowhere(sys.stdout)
        return 0
    except OSError as error:
        message, code, shown = _explain(error), hosts.FAILED, error
    except Exception as error:
        if not in_job:
            raise
        hosts.explain(error)
    if args.debug:
        traceback.print_exception(shown)
    message = " ".join(message.split())
    print(f"t3d: error: {message}", file=sys.stderr)
    hosts.leave(code, message)
    return code


def _to_nowhere(stream: TextIO) -> None:
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def _unread_output() -> Iterator[None]:
    """While entered, work goes on when nobody reads its output any more."""
    stream = sys.stdout
    with contextlib.redirect_stdout(_Lasting(stream)):
        yield


class _Lasting:
    """A stream whose reader may go."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            _to_nowhere(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            _to_nowhere(self._stream)


def _keep_compiled_programs() -> None:
    """XLA's programs are kept on disk: a second start need not compile them again.

    JAX_COMPILATION_CACHE_DIR names another place than the user's cache folder; empty: nowhere.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "t3d" / "jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def program() -> int:
    """`t3d` as a program of its own."""
    pages.use_huge_pages()
    return main()


if __name__ == "__main__":
    sys.exit(program())
