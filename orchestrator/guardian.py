"""Runs a program that leaves nothing behind: `python guardian.py PROGRAM ARG...`, with its standard input a pipe.

The program gets a process group of its own. When it ends, or when the pipe breaks because whoever started us is gone
(killed even), what is left of the group is killed. Triton needs this: a stub whose server was killed can wait for ever
on memory they shared. SIGTERM is passed on to the program; the exit status is the program's. Nothing of ours is
imported, so that starting takes milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1


def guard(command: list[str]) -> int:
    """Run `command` to its end; its exit status, as a shell tells it."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        # Should we be killed, the program at least follows.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execv(command[0], command)
    # Both do it: whoever is gone before the program came to it shall find its group. Once it has, we may not.
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(pid, signal.SIGTERM))
    program = os.pidfd_open(pid)
    select.select([program, sys.stdin.fileno()], [], [])
    # The program is not waited for until its group is dead: until then its number cannot be another's.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
