"""A process that is copied where others are started: a copy is ready in a millisecond. Run by `stand_in`.

    stand_in_parent.py PROGRAM

For each line of stdin it copies itself, and prints the copy's pid and port, the latter 0 if the copy died before it had
one. The copy calls PROGRAM's `serve(tell)`, which tells its port and answers until SIGTERM.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from functools import partial


def tell(writing: int, port: int) -> None:
    os.write(writing, str(port).encode())


def main() -> None:
    serve = runpy.run_path(sys.argv[1])["serve"]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the tests, which end and with them our stdin
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who ends is gone at once, and no zombie
    for _ in sys.stdin:
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reading)
            serve(partial(tell, writing))
            return
        os.close(writing)
        print(pid, int(os.read(reading, 100) or 0), flush=True)  # noqa: T201 - read by whoever started us
        os.close(reading)


if __name__ == "__main__":
    main()
