"""Stands in for Slurm's srun: one task for each node of the job, all of them on this machine.

The tasks are told what Slurm tells them. SIGTERM goes on to them; the answer is the highest exit
code of all, as srun's is.
"""

import os
import signal
import subprocess
import sys


def _task(number: int, command: list[str]) -> subprocess.Popen:
    nodes = int(os.environ["SLURM_NTASKS"])
    told = {
        "SLURM_STEP_NODELIST": ",".join(["localhost"] * nodes),
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_NODEID": str(number),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": "0",
    }
    return subprocess.Popen(command, env=os.environ | told)


def main(arguments: list[str]) -> int:
    start = next(i for i, word in enumerate(arguments) if not word.startswith("--"))
    tasks = [_task(k, arguments[start:]) for k in range(int(os.environ["SLURM_NTASKS"]))]
    signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
    codes = [task.wait() for task in tasks]
    return max(code if code >= 0 else 128 - code for code in codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
