"""Trainings whose second process does what it should not, at a step that the test chooses."""

import os
from pathlib import Path

import pytest

ERROR = "ValueError: nobody expects this"
_SITE = """
import importlib.abc, importlib.util, os, pathlib, sys, time

class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "mofang.train.loop":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        whole = spec.loader.exec_module

        def exec_module(module):
            whole(module)
            step = module.Loop._step

            def broken(self, batch, rate):
                if os.environ.get("RANK") == "1" and self.step == {step} and {when}:
                    {fault}
                return step(self, batch, rate)

            module.Loop._step = broken

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Broken())
"""
_FAULTS = {
    "raises": ("True", 'raise ValueError("nobody expects this")'),
    "hangs once": ("not pathlib.Path({mark!r}).exists()", "pathlib.Path({mark!r}).touch(); time.sleep(600)"),
}


def prepare(folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str, step: int) -> None:
    """From here on, in processes that are started: `fault` of the second one, before its step with that number (from 0)."""
    folder.mkdir()
    when, what = (part.format(mark=str(folder / "done")) for part in _FAULTS[fault])
    (folder / "sitecustomize.py").write_text(_SITE.format(step=step, when=when, fault=what))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
