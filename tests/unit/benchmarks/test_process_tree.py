from __future__ import annotations

import os
import subprocess
import sys

import psutil

from support.eventually import eventually
from trierarch.benchmarks.process_tree import ForeignShare, descend, peak_rss


def test_what_a_tree_uses_is_foreign_to_others_only() -> None:
    own: list[int] = []
    of_all, of_others = ForeignShare(list), ForeignShare(lambda: own)
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    own.append(child.pid)
    try:
        process = psutil.Process(child.pid)
        eventually(lambda: process.cpu_times().user > 0.2, "the child uses a processor")
        # The two are read one after the other: what others do in between tells less the longer all has gone on.
        eventually(lambda: 0 <= of_others.share() < of_all.share() <= 1, "the child's part makes a difference")
    finally:
        child.kill()
        child.wait()


def test_a_process_that_replaces_another_counts_from_its_start() -> None:
    spin = [sys.executable, "-c", "while True: pass"]
    first = subprocess.Popen(spin)
    own = [first.pid]
    try:
        eventually(lambda: psutil.Process(first.pid).cpu_times().user > 0.5, "the first uses a processor")
        of_all, of_others = ForeignShare(list), ForeignShare(lambda: own)
    finally:
        first.kill()
        first.wait()
    second = subprocess.Popen(spin)
    own[:] = [second.pid]
    try:
        eventually(lambda: psutil.Process(second.pid).cpu_times().user > 0.2, "the second uses a processor")
        eventually(lambda: of_others.share() < of_all.share(), "its part makes a difference")
    finally:
        second.kill()
        second.wait()


def test_peaks_are_summed_over_the_living_tree() -> None:
    child = subprocess.Popen(["sleep", "600"])
    try:
        eventually(lambda: peak_rss(child.pid) > 0, "the child holds memory")
        assert {os.getpid(), child.pid} <= {process.pid for process in descend(os.getpid())}
        assert peak_rss(os.getpid()) > peak_rss(child.pid)
    finally:
        child.kill()
        child.wait()

    assert descend(child.pid) == []
    assert peak_rss(child.pid) == 0
