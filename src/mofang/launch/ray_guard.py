"""Ends what a run's own Ray leaves behind when the run is killed: `python -m mofang.launch.ray_guard SESSION`.

Ray's head and raylet end with their driver; their agents look for a lost head for more than a minute first. All are in
the session that the run's process leads, and this one, which is not, waits for that process's end.
"""

import contextlib
import os
import signal
import sys

import psutil


def main() -> int:
    session = int(sys.argv[1])
    while sys.stdin.buffer.read(4096):  # the other end of this pipe is held by the run's process alone
        pass
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == session and pid != session:
                os.kill(pid, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
