"""The base install needs no torch: importing every room loads none of the heavy libraries."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import mofang

HEAVY = (
    "rapidocr",
    "torch",
    "onnxruntime",
    "onnx",
    "transformers",
    "sentence_transformers",
    "peft",
    "bitsandbytes",
    "tensorboardX",
    "ray",
    "langchain_core",
    "chromadb",
    "mcp",
    "cv2",
    "psycopg",
    "opensearchpy",
    "usearch",
    "pyarrow",
)
HEAVY_WORKERS = (
    "mofang.train.",
    "mofang.export.",
    "mofang.launch.torchrun",
    "mofang.launch.ray_",
    "mofang.launch.storage",
    "mofang.engine.transformers.core",
    "mofang.engine.sentence_transformers.core",
    "mofang.engine.llama_cpp.core",
    "mofang.engine.onnx.core",
    "mofang.engine.onnx.graph",
    "mofang.data.files.parquet",
)
"""Workers of trainings and exports, and of engines with libraries of their own: only child processes import them."""
NEED_EXTRA = ("mofang.integrations.langchain", "mofang.knowledge.stores.langchain")
"""Files whose classes are those of another's framework: imported by whoever uses that."""
LAZY = ("streamlit", "fastapi", "uvicorn", "xllamacpp", "numpy", "rich")
"""Not needed to print `mofang --help`."""

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages([str(Path(mofang.__file__).parent)], prefix="mofang.")
    if not info.name.startswith((*HEAVY_WORKERS, *NEED_EXTRA))
    and not info.name.endswith("__main__")
    and ".ui.pages." not in info.name
    and info.name != "mofang.ui.app"
)


def _loaded_after(code: str, names: tuple[str, ...]) -> list[str]:
    program = f"{code}\nimport sys\nprint([name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(eval(done.stdout))


def test_no_room_loads_a_heavy_library() -> None:
    assert {"mofang.api", "mofang.cli.main", "mofang.server", "mofang.knowledge", "mofang.engine"} <= set(MODULES)
    assert _loaded_after("\n".join(f"import {name}" for name in MODULES), HEAVY) == []


def test_the_command_tree_loads_nothing_that_help_does_not_need() -> None:
    assert _loaded_after("from mofang.cli.main import build\nbuild()", LAZY) == []


def test_importing_mofang_imports_only_itself() -> None:
    assert _loaded_after("import mofang", ("pydantic", "httpx", "typer", *LAZY)) == []
