from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from support.eventually import eventually
from trierarch.orchestrator import guardian

# A program with a child of its own; it prints the child's number when both are there.
FAMILY = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"


def guarded(*program: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-I", "-S", guardian.__file__, *program]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def family() -> subprocess.Popen[str]:
    return guarded(sys.executable, "-c", FAMILY)


def is_over(pid: int) -> bool:
    """Whether the process has ended, or is only waited for."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_program_s_exit_status_is_ours() -> None:
    with guarded("/bin/sh", "-c", "exit 7") as process:
        assert process.wait(60) == 7


def test_sigterm_reaches_the_program() -> None:
    trap = "import signal, sys; signal.signal(signal.SIGTERM, lambda *a: sys.exit(3)); print('up', flush=True); signal.pause()"
    with guarded(sys.executable, "-c", trap) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.wait(60) == 3


def test_a_broken_pipe_ends_the_whole_family(family: subprocess.Popen[str]) -> None:
    with family:
        assert family.stdout is not None
        assert family.stdin is not None
        grandchild = int(family.stdout.readline())
        family.stdin.close()
        eventually(lambda: is_over(grandchild), "an end to the grandchild")
        assert family.wait(60) == 128 + 9


def test_children_do_not_outlive_a_program_that_is_killed(family: subprocess.Popen[str]) -> None:
    with family:
        assert family.stdout is not None
        grandchild = int(family.stdout.readline())
        (program,) = psutil.Process(family.pid).children()
        program.kill()
        eventually(lambda: is_over(grandchild), "an end to the grandchild")
        assert family.wait(60) == 128 + 9


def test_a_parent_that_is_killed_takes_the_family_along(tmp_path: Path) -> None:
    parent = (
        "import subprocess, sys; "
        f"subprocess.Popen([sys.executable, '-I', '-S', {guardian.__file__!r}, sys.executable, '-c', {FAMILY!r}], "
        "stdin=subprocess.PIPE).wait()"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        process.kill()
        eventually(lambda: is_over(grandchild), "an end to the grandchild")
