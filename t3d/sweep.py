"""`t3d sweep`: the variants of a config, trained and measured alike, in one table.

A sweep is a config file that has, beside `get_config()`, either MEMBERS (variant → overrides) or
`sweep()` (which yields dicts of overrides), and perhaps TABLES (how a paper prints them):
configs/ablations.py, configs/sweeps/. Every speaker is trained by itself, in OUT/VARIANT/SPEAKER. A
stage that two runs would train alike is trained once. `--launcher` makes the members jobs of a
cluster, which write only in their own folders; `--collect` makes the tables of what is finished.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from t3d import checkpoint, evaluate, hosts, measure, population, sweep_jobs, sweep_results, talker
from t3d import config as configs
from t3d import run as runs
from t3d.data import feature_files
from t3d.data.parts import write_atomically
from t3d.errors import UserError
from t3d.sweep_members import Member, members_of, read_groups, tables_of
from t3d.train import trainer
from t3d.train.writers import NotFinite

SHARED = ("seed", "size", "dtype", "mel_steps")  # what every stage's outcome hangs on
FAILURE = "failed.txt"  # in the folder of a member: why its job ended
RESULTS = ("results.md", "results.csv", "results.png", "results.json")


# ---- stages that are trained once


def adopt(folder: Path, record: dict, donors: Iterable[Path], log: Callable[[str], None]) -> None:
    """Takes over finished stages that other runs trained exactly as this one would.

    Args:
        folder: of the run, which may be new.
        record: what `run.record_of` says of it.
        donors: folders of runs; the first that fits gives.
        log: takes a line for each stage.
    """
    others = list(_records(donor for donor in donors if donor.resolve() != folder.resolve()))
    for stage in talker.STAGES:
        outcome = folder / "params" / stage
        mine = checkpoint.read_run(folder).get("stages", {})
        enough = mine.get(stage, {}).get("steps", -1) >= record["config"]["stages"][stage]["steps"]
        if outcome.is_dir() and enough:
            continue
        for donor, theirs in others:
            if not _fits(stage, record, mine, theirs):
                continue
            entry = theirs["stages"][stage]
            if _copy(donor / "params" / stage, outcome, entry["sha256"]):
                taken = entry | {"taken_from": str(donor)}
                checkpoint.update_run(folder, **record, stages={stage: taken})
                log(f"{stage}: taken from {donor}")
                break
            log(f"{stage}: is not whole in {donor}: not taken from there")


def _records(donors: Iterable[Path]) -> Iterator[tuple[Path, dict]]:
    """The records of runs; one that cannot be read, or not just now, gives nothing."""
    for donor in donors:
        with contextlib.suppress(UserError):
            yield donor, checkpoint.read_run(donor)


def _copy(source: Path, target: Path, sha256: str) -> bool:
    """Copies a stage's params, if they are whole; what a killed copy left is replaced.

    Another process may write or delete them meanwhile.
    """
    part = target.with_name(f"{target.name}.new")
    shutil.rmtree(part, ignore_errors=True)
    try:
        shutil.copytree(source, part)
        whole = checkpoint.params_sha256(checkpoint.load_params(part)) == sha256
    except (OSError, UserError):
        whole = False
    if whole:
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    shutil.rmtree(part, ignore_errors=True)
    return whole


def _fits(stage: str, record: dict, mine: dict, theirs: dict) -> bool:
    """Whether another run's stage is what this run's would become.

    Args:
        record: of this run, before it trained; mine: its stages so far; theirs: the other's record.
    """
    entry = theirs.get("stages", {}).get(stage)
    if entry is None:
        return False
    ours, others = record["config"], theirs["config"]
    schedule = {k: v for k, v in ours["stages"][stage].items() if k not in trainer.SCHEDULE}
    needed = talker.NEEDS[stage]
    return (
        [d["fingerprint"] for d in record["data"]] == [d.get("fingerprint") for d in theirs["data"]]
        and (stage not in talker.HEARING or _heard(record) == _heard(theirs))
        and all(ours[key] == others.get(key) for key in SHARED)
        and _training_values(ours[stage]) == _training_values(others[stage])
        and entry["steps"] == ours["stages"][stage]["steps"]
        and entry["settings"]["config"] == schedule
        and all(name in mine for name in needed)
        and all(entry["settings"]["frozen"].get(name) == mine[name]["sha256"] for name in needed)
    )


def _heard(record: dict) -> list[str]:
    return [feature_files.identity(d.get("features")) for d in record["data"]]


def _training_values(group: dict) -> dict:
    return {key: value for key, value in group.items() if key not in runs.TEST_TIME}


# ---- training and measuring


def train_all(
    members: Sequence[Member], donor: Path | None, log: Callable[[str], None] = print
) -> None:
    """Trains all members one after another; what is finished is left as it is.

    A member whose loss is not finite is noted in its folder, and the others go on.

    Args:
        donor: a run that gives the stages that fit, beside the members themselves.

    Raises:
        UserError: before anything is trained, if a config or a dataset cannot be; if a member's
            folder holds stages of other settings.
    """
    for member in members:
        _check(member)
    donors = [donor] if donor else []
    for member in untrained(members):
        log(f"{members.index(member) + 1}/{len(members)} {member.folder}")
        with contextlib.suppress(NotFinite), _noted(member, log):
            train_member(member, [*donors, *(other.folder for other in members)], log)
    for member in members:
        if _is_trained(member):
            _check_whole(member)


@contextlib.contextmanager
def _noted(member: Member, log: Callable[[str], None]) -> Iterator[None]:
    """Keeps the reason why a member fails in its folder, for `state_of`."""
    (checkpoint.writable_folder(member.folder) / FAILURE).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        _note(member, error, log)
        raise


def _note(member: Member, error: Exception, log: Callable[[str], None]) -> None:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    write_atomically(member.folder / FAILURE, lambda p: p.write_text(reason + "\n"))
    log(f"{member}: failed: {reason}")


def train_together(
    members: Sequence[Member], donor: Path | None, out: Path, log: Callable[[str], None] = print
) -> None:
    """Trains all members as populations (`t3d/population.py`), on all hosts of the job.

    Args:
        donor: as in `train_all`; out: the sweep's folder, which takes the populations' states.

    Raises:
        UserError: as `train_all`.
    """
    for member in members:
        _check(member)

    def say(line: str, member: Member) -> None:
        log(f"{member}: {line}")

    def take_over(learner: runs.Learner, folders: Iterable[Path]) -> None:
        donors = [*([donor] if donor else []), *folders]
        record = runs.record_of(learner.config, learner.datasets)
        adopt(learner.workdir, record, donors, learner.log)

    learners = [
        runs.Learner(m.config, [m.speaker], m.folder, out / runs.CACHE, partial(say, member=m))
        for m in members
    ]
    lost = population.train(learners, out, take_over, log)
    if hosts.is_first():
        shutil.rmtree(out / runs.CACHE, ignore_errors=True)
        for member in members:
            (member.folder / FAILURE).unlink(missing_ok=True)
            if member.folder in lost:
                _note(member, NotFinite(lost[member.folder]), log)
    for member in members:
        if _is_trained(member):
            _check_whole(member)


def untrained(members: Iterable[Member]) -> list[Member]:
    """The members that are to be trained, or trained further, or whose record has another config:
    what only matters at test time may change, and is noted."""
    return [
        member
        for member in members
        if not _is_trained(member)
        or configs.from_json(checkpoint.read_run(member.folder)["config"]) != member.config
    ]


def train_member(member: Member, donors: Iterable[Path], log: Callable[[str], None]) -> None:
    """Trains a member, or goes on with it; it takes over what donors have finished alike."""

    def say(line: str) -> None:
        log(f"{member}: {line}")

    checkpoint.writable_folder(member.folder)
    adopt(member.folder, runs.record_of(member.config, [member.speaker]), donors, say)
    runs.train(member.config, [member.speaker], member.folder, log=say)


def _check(member: Member) -> None:
    """UserError if the member cannot be trained, or its folder holds something else."""
    runs.check_config(member.config)
    runs.check_datasets(member.config, [member.speaker])
    record = runs.record_of(member.config, [member.speaker])
    runs.check_same_run(member.folder, record["config"], record["data"])


def _is_trained(member: Member) -> bool:
    speaker = member.folder / "speaker_0.npz"  # written when a training begins
    return speaker.exists() and len(_done(member)) == len(talker.STAGES)


def _done(member: Member) -> list[str]:
    """The stages that a member has finished."""
    stages = checkpoint.read_run(member.folder).get("stages", {})
    return [
        name
        for name in talker.STAGES
        if stages.get(name, {}).get("steps", -1) >= member.config.stages[name].steps
        and (member.folder / "params" / name).is_dir()
    ]


def _check_whole(member: Member) -> None:
    """UserError if a stage was kept that was trained on top of others, or otherwise, than now."""
    stages = checkpoint.read_run(member.folder)["stages"]
    for name in talker.STAGES:
        settings, wanted = stages[name]["settings"], member.config.stages[name]
        if settings["config"] != trainer.fixed_settings(wanted) or any(
            settings["frozen"].get(need) != stages[need]["sha256"] for need in talker.NEEDS[name]
        ):
            raise UserError(
                f"{member.folder}: its stage {name} was trained before what it hangs on changed; "
                f"delete {member.folder} and run the same command again"
            )


def measure_all(members: Sequence[Member], log: Callable[[str], None] = print) -> None:
    """Evaluates the members that have no figures of today's networks, split and judge."""
    for number, member in enumerate(members):
        run = runs.open_run(member.folder)
        if _is_measured(member, evaluate.about_of(run, member.speaker, "test")):
            continue
        log(f"measuring {number + 1}/{len(members)} {member.folder}")
        evaluate.write(member.folder, run, evaluate.measure(run, member.speaker))


def _is_measured(member: Member, about: dict) -> bool:
    path = member.folder / evaluate.SERIES
    if not path.exists():
        return False
    newest = max(p.stat().st_mtime for p in (member.folder / "params").iterdir())
    _, _, told = measure.load_series(path)
    return told == about and path.stat().st_mtime > newest


# ---- one job, and what all jobs have done


def run_member(
    members: Sequence[Member],
    number: int,
    donor: Path | None,
    log: Callable[[str], None] = print,
) -> None:
    """Trains and measures one member; nothing is written but in its folder.

    Args:
        number: its place among the members; donor: as in `train_all`.

    Raises:
        UserError: what `train_all` raises. The reason is kept in failed.txt.
    """
    member = members[number]
    donors = ([donor] if donor else []) + [other.folder for other in members]
    with _noted(member, log):
        _check(member)
        if untrained([member]):
            train_member(member, donors, log)
        _check_whole(member)
        measure_all([member], log)
    log(f"{member}: done; it is in {member.folder}")


def state_of(member: Member) -> str:
    """How far a member has come, in words; "" if it is trained and measured."""
    try:
        _check(member)
        state = _progress(member)
    except UserError as error:
        return f"failed: {error}"
    failure = member.folder / FAILURE
    return f"failed: {failure.read_text().strip()}" if state and failure.exists() else state


def _progress(member: Member) -> str:
    if not _is_trained(member):
        return f"{len(_done(member))} of {len(talker.STAGES)} stages are done"
    _check_whole(member)
    run = runs.open_run(member.folder)
    about = evaluate.about_of(run, member.speaker, "test")
    return "" if _is_measured(member, about) else "not yet measured"


def collect(members: Sequence[Member]) -> tuple[list[Member], str]:
    """The members that a table can be made of, and a line that names the others ("" if none).

    A variant of several speakers counts when it has learned all of them.

    Raises:
        UserError: no variant is finished.
    """
    states = {member.folder: state_of(member) for member in members}
    lacking = [member for member in members if states[member.folder]]
    places = {(member.group, member.variant) for member in lacking}
    finished = [member for member in members if (member.group, member.variant) not in places]
    told = "; ".join(f"{member} ({states[member.folder]})" for member in lacking)
    if not finished:
        raise UserError(f"no member is finished: {told}; run the same command, without --collect")
    line = f"{len(lacking)} of {len(members)} members are missing: {told}" if lacking else ""
    return finished, line


def tell(members: Sequence[Member], donor: Path | None, only: int | None = None) -> None:
    """Prints what a sweep would train and measure.

    Args:
        donor: as in `train_all`; only: the number of a single member.

    Raises:
        UserError: none of it can be.
    """
    shown = range(len(members)) if only is None else [only]
    states = [state_of(members[number]) or "finished" for number in shown]
    for number, state in zip(shown, states, strict=True):
        taken = _would_take(members[number], donor) if donor else []
        also = f"; {', '.join(taken)} would be taken from {donor}" if taken else ""
        print(f"{number}: {members[number]} in {members[number].folder}: {state}{also}")
    if all(state.startswith("failed") for state in states):
        raise UserError(f"no member can be trained; {members[shown[0]]} {states[0]}")


def _would_take(member: Member, donor: Path) -> list[str]:
    """The stages that a member lacks and that a run would give it."""
    record, theirs = runs.record_of(member.config, [member.speaker]), checkpoint.read_run(donor)
    mine, done = checkpoint.read_run(member.folder).get("stages", {}), _done(member)
    taken = []
    for stage in (stage for stage in talker.STAGES if stage not in done):
        if _fits(stage, record, mine, theirs):
            mine[stage] = theirs["stages"][stage]
            taken.append(stage)
    return taken


# ---- the command


def sweep_command(args) -> None:
    """`t3d sweep`."""
    _check_options(args)
    args.overrides = [sweep_jobs.with_whole_path(override) for override in args.overrides]
    groups = read_groups(args.data)
    tables = tables_of(configs.load_module(args.config))
    members = members_of(args.config, args.overrides, groups, Path(args.out), args.seeds)
    donor = Path(args.start_from) if args.start_from else None
    if donor and not checkpoint.read_run(donor):
        raise UserError(f"--start-from {donor}: no run is there; give the folder of one")
    if args.member is not None and not 0 <= args.member < len(members):
        raise UserError(f"--member {args.member}: there are members 0 to {len(members) - 1}")
    if args.launcher != "local":
        return sweep_jobs.launch(args, len(members))
    if args.dry_run:
        return tell(members, donor, args.member)
    if args.member is not None:
        return run_member(members, args.member, donor)
    if args.population:
        train_together(members, donor, Path(args.out), hosts.say)
    elif not args.collect:
        train_all(members, donor)
    missing = ""
    if hosts.is_first():
        if not args.collect:
            measure_all([member for member in members if _is_trained(member)])
        finished, missing = collect(members)
        report(args, finished, tables, missing)
    missing = hosts.as_first_says(missing)
    if missing and not args.collect:
        raise UserError(f"{missing}; the tables are of the others")


def _check_options(args) -> None:
    """UserError for options that do not go together."""
    if args.member is not None and args.collect:
        raise UserError("--member and --collect: give one of them")
    if args.launcher == "local" and args.launcher_option:
        raise UserError("--launcher-option: goes with --launcher slurm, jobset or sky")
    if args.launcher != "local" and (args.member is not None or args.collect or args.population):
        raise UserError("--member, --collect, --population: are done here; leave --launcher out")
    if args.population and (args.member is not None or args.collect):
        raise UserError("--population: trains all members; leave --member and --collect out")
    if args.in_job and not args.population:
        raise UserError("--distributed: several hosts train a sweep together with --population")


def report(args, members: Sequence[Member], tables: dict, missing: str) -> None:
    """Writes and prints what the members' figures are.

    Args:
        members: measured; missing: a line about those that are not, or "".
    """
    out, groups = Path(args.out), list(dict.fromkeys(member.group for member in members))
    figures = evaluate.plain(sweep_results.figures_of(members, tables))
    below = sweep_results.notes(figures, members) + ([f"{missing}."] if missing else [])
    contents = (
        sweep_results.markdown(figures, groups, tables, below).encode(),
        sweep_results.comma_separated(figures, members).encode(),
        sweep_results.picture(figures, groups, members),
    )
    for name, content in zip(RESULTS, contents, strict=False):
        write_atomically(out / name, lambda p, content=content: p.write_bytes(content))
    for path in (out / "results.json", *([Path(args.json)] if args.json else [])):
        evaluate.write_json(path, figures)
    sweep_results.show(figures, groups, tables, below)
    print(*(out / name for name in RESULTS), sep="\n")
    if missing and args.collect:
        print(f"t3d: warning: {missing}", file=sys.stderr)
