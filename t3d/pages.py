"""Huge pages for XLA's memory on CPUs."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"
ASKED = "T3D_HUGE_PAGES"  # set as a process starts itself anew: once is enough
_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> None:
    """Starts this process anew, once, with GLIBC_TUNABLES=glibc.malloc.hugetlb=1.

    On CPUs XLA gives the memory of a step back and asks for it again; in pages of 4 KiB that is 12
    to 27 % of a training step (docs/benchmarks.md). glibc reads the setting only as a process
    starts, and heeds it where Linux gives huge pages to those who ask ("madvise"); elsewhere this
    does nothing. A GLIBC_TUNABLES that names it is left as it is: glibc.malloc.hugetlb=0 turns
    this off. For a program that does nothing but `t3d`: what it has done is done again.
    """
    tunables = os.environ.get(TUNABLES, "")
    if ASKED in os.environ or HUGE_PAGES.split("=")[0] in tunables or not sys.executable:
        return
    if not (_MODE.exists() and "[madvise]" in _MODE.read_text()):
        return
    os.environ |= {ASKED: "1", TUNABLES: f"{tunables}:{HUGE_PAGES}".lstrip(":")}
    with contextlib.suppress(OSError):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
