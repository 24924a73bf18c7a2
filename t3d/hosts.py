"""Several processes as one job: they start together, agree, and end together.

JAX's distributed runtime carries it. Here is what a user sees of it: how a process joins, who
writes, and what is said when a host is lost.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

from t3d.errors import UserError

FAILED, LOST = 2, 75  # exit codes: what the user can mend; another host was lost or failed
ARRIVAL = 300  # seconds that hosts wait for each other at the start
HEARTBEAT = 20  # seconds after which a silent host counts as lost
SHUTDOWN = 30  # seconds that a finished host waits for the others
PATIENCE = 24 * 3600  # seconds that hosts wait for one that works alone
NOTICE = 3  # seconds that a failed host stays to be heard
ENDED = "t3d/ended/"  # where failed hosts leave their last words
TRANSPORT = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "Gloo", "NCCL")  # in JAX's errors
CHILD = "T3D_SUPERVISED"  # set in the process that does the work
AGAIN = "the same command goes on from the last checkpoint"

_meetings, _steps, _words = itertools.count(), itertools.count(1), itertools.count()
_leaving = threading.Event()


# ---- a process that watches over the one that works


def supervise(arguments: Sequence[str]) -> int:
    """Runs `t3d ARGUMENTS` in a child, so that even one killed from outside leaves a clear line.

    SIGTERM and SIGINT reach the child as SIGTERM: all hosts save at one step and leave. A second
    SIGINT ends the child at once: it may be waiting for others. What is ignored stays ignored
    (nohup's SIGHUP).

    Returns:
        the child's exit code; 75 where JAX ended it because another host was lost.
    """
    command = [sys.executable, "-P", "-m", "t3d.cli", *arguments]
    child = subprocess.Popen(command, env=os.environ | {CHILD: "1"}, start_new_session=True)
    interrupted, killed = [], []

    def forward(signum: int, _frame: Any) -> None:
        again = signum == signal.SIGINT and signum in interrupted
        interrupted.append(signum)
        if again:
            killed.append(signum)
            child.kill()
        else:
            child.terminate()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, forward)
    code = child.wait()
    if killed or (code == 128 + signal.SIGTERM and signal.SIGINT in interrupted):
        return 128 + signal.SIGINT
    if code >= 0:
        return code
    if -code == signal.SIGABRT:
        print(f"t3d: error: another host was lost, so this one ended; {AGAIN}", file=sys.stderr)
        return LOST
    name = signal.Signals(-code).name
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    print(f"t3d: error: this host was ended by {name}{hint}; {AGAIN}", file=sys.stderr)
    return 128 - code


# ---- joining


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Makes this process one of a job's (jax.distributed.initialize).

    Args:
        coordinator: HOST:PORT of process 0; processes: how many; process: which one this is. All
            None where the cluster tells: Slurm, Open MPI, Cloud TPU, GKE.

    Raises:
        UserError: no cluster tells.
        SystemExit: 75, the other hosts did not come within `ARRIVAL` seconds.
    """
    import jax

    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method="deactivate" if coordinator else None,
            initialization_timeout=ARRIVAL,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=SHUTDOWN,
        )
    except ValueError as error:
        raise UserError(
            f"--distributed: no cluster tells which hosts there are ({_first_line(error)}); give "
            "--coordinator HOST:PORT --processes N --process K"
        ) from error
    except RuntimeError as error:
        print(
            f"t3d: error: the hosts did not find each other within {ARRIVAL} s "
            f"({_first_line(error)}); look whether all were started, and start them again",
            file=sys.stderr,
        )
        raise SystemExit(LOST) from error
    threading.Thread(target=_listen, daemon=True).start()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _client() -> Any:
    """The job's key-value store, None without a job; JAX has no public name for it."""
    from jax._src import distributed

    return distributed.global_state.client


def in_job() -> bool:
    """Whether this process has joined a job, be it of one process."""
    return _client() is not None


def is_first() -> bool:
    """Whether this process writes what is single."""
    import jax

    return jax.process_index() == 0


def say(line: str) -> None:
    """Prints a line, once for the whole job."""
    if is_first():
        print(line, flush=True)


def meet(name: str) -> None:
    """Waits until all processes of the job have come here."""
    if client := _client():
        client.wait_at_barrier(f"t3d/{name}/{next(_meetings)}", timeout_in_ms=1000 * PATIENCE)


def as_first_says(value: Any) -> Any:
    """The first host's value (JSON): all take one way, though a disk may look otherwise to each.

    All processes of the job must call it.
    """
    client, key = _client(), f"t3d/says/{next(_words)}"
    if client is None:
        return value
    if is_first():
        client.key_value_set(key, json.dumps(value))
        return value
    return json.loads(client.blocking_key_value_get(key, 1000 * PATIENCE))


def stop_is_due(signum: int | None) -> bool:
    """Whether to save and leave now; called by all processes after each step.

    Args:
        signum: of a signal that this process was given, if it works alone.

    Several processes agree on a step: SIGTERM to any one of them stops all.
    """
    if not in_job():
        return signum is not None
    from jax.experimental import multihost_utils

    # JAX names a step by the next number: one that were left out would never come.
    return multihost_utils.reached_preemption_sync_point(next(_steps))


# ---- ending


def _listen() -> None:
    """Ends this process with a clear line when another one says that it has failed."""
    client, parent = _client(), os.getppid()
    while _client() is client and not _leaving.is_set():
        time.sleep(1)
        if CHILD in os.environ and os.getppid() != parent:  # nobody watches any more
            os._exit(128 + signal.SIGHUP)
        try:
            words = client.key_value_dir_get(ENDED)
        except Exception:  # the store is gone with its host: JAX ends this process itself
            return
        others = [(key, text) for key, text in words if key != _own_key()]
        if others and not _leaving.is_set():
            _say_and_exit(*others[0])


def _own_key() -> str:
    import jax

    return f"{ENDED}{jax.process_index()}"


def _say_and_exit(key: str, text: str) -> None:
    number = key.removeprefix(ENDED)
    code, _, text = text.partition(" ")
    print(f"t3d: error: host {number} failed, so this one ended: {text}", file=sys.stderr)
    sys.stderr.flush()
    if is_first():  # the store is here: without it the failed host would not end by itself
        time.sleep(2 * NOTICE)
    os._exit(FAILED if int(code) == FAILED else LOST)


def explain(error: Exception) -> None:
    """Says what an unforeseen error in a job was, and ends this process; does not return.

    When a host is lost, the others' next collective fails: then its last words are waited for.
    """
    import jax

    text = f"{type(error).__name__}: {_first_line(error)}"
    if isinstance(error, jax.errors.JaxRuntimeError) and any(word in text for word in TRANSPORT):
        time.sleep(NOTICE)
        print(
            f"t3d: error: lost touch with another host ({text}); {AGAIN}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LOST)
    traceback.print_exception(error)
    leave(1, text)
    os._exit(1)


def leave(code: int, words: str) -> None:
    """Ends a failed process of a job at once, so that the others need not wait; alone, returns.

    Args:
        code: exit code; words: what the other hosts will say of it.
    """
    client = _client()
    if client is None:
        return
    _leaving.set()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        client.key_value_set(_own_key(), f"{code} {words}", allow_overwrite=True)
        time.sleep(NOTICE)
    finally:
        os._exit(code)
