"""Stands between us and a program that is not ours, where the system cannot tie the two: `python -m mofang.keeper …`.

The program ends when our standard input closes, which it does when our parent dies. See platform.start_program.
"""

import subprocess
import sys
import threading


def main() -> int:
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def watch() -> None:
        while sys.stdin.buffer.read(1):
            pass
        program.kill()

    threading.Thread(target=watch, daemon=True).start()
    return program.wait()


if __name__ == "__main__":
    sys.exit(main())
