"""Text from pictures of pages, by RapidOCR (PaddleOCR's small models under onnxruntime; its wheel brings them along).

It computes in a child process (ocr_child.py): a crash of it costs one document and never the gateway, and it gives way
to whoever is chatting. Chinese of both scripts and Latin letters; one column: what stands side by side is read as one
line.
"""

import json
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mofang import platform
from mofang.errors import EngineFailed
from mofang.knowledge.loaders.ocr_child import HEADER, Words

Picture = NDArray[np.uint8]
"""(height, width, 3), blue green red."""
PAGE_S = 300.0
"""A page that takes longer hangs; one takes about five seconds of processor time."""


class RapidReader:
    """Starts the child, which loads its models once (a second or two). Close it.

    Raises EngineFailed (knowledge.ocr_failed) when the child cannot start, dies or hangs.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-m", "mofang.knowledge.loaders.ocr_child"]
        self._child = platform.start_child(command, stdout=subprocess.PIPE)
        platform.lower_priority(self._child.pid, platform.BESIDE_CHAT)
        try:
            first = self._answer()
            if "ready" not in first:
                raise EngineFailed("knowledge.ocr_failed", why=first.get("error", "?"))
        except BaseException:
            self.close()
            raise

    def read(self, picture: Picture) -> list[Words]:
        """Lines from the top to the bottom."""
        stream = self._child.stdin
        assert stream is not None
        try:
            stream.write(HEADER.pack(*picture.shape[:2]))
            stream.write(np.ascontiguousarray(picture).tobytes())
            stream.flush()
        except OSError as error:
            raise self._died() from error
        return [(text, tuple(box)) for text, box in self._answer()]

    def close(self) -> None:
        """Safe to call twice."""
        if self._child.stdin:
            with suppress(OSError):  # a picture that a dead child no longer reads
                self._child.stdin.close()
        platform.end_child(self._child)
        if self._child.stdout:
            self._child.stdout.close()

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        alarm = threading.Timer(PAGE_S, self._child.kill)
        alarm.start()
        try:
            line = self._child.stdout.readline()
        finally:
            alarm.cancel()
        if not line.endswith(b"\n"):
            raise self._died()
        return json.loads(line)

    def _died(self) -> EngineFailed:
        return EngineFailed("knowledge.ocr_failed", why=f"exit code {self._child.wait(timeout=10)}")
