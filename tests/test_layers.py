"""Who may import whom. A new room or arrow is a line here, and its reason stands in docs/decisions."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "mofang"

# Downwards: a module of the foundation may import those to its right in this tuple, not to its left.
FOUNDATION = (
    "batches",
    "client",
    "runs",
    "recipes",
    "wire",
    "durations",
    "settings",
    "platform",
    "keeper",
    "registry",
    "errors",
    "messages",
    "strings",
)

ROOMS: dict[str, set[str]] = {
    "text": set(),
    "models": {"text"},
    "engine": {"models", "text"},
    "measure": {"engine", "models"},
    "tokenizer": {"models", "text"},
    "data": {"tokenizer", "models", "text"},
    "knowledge": {"engine", "text"},
    "train": {"data", "tokenizer", "models", "measure"},
    "export": {"models", "data", "tokenizer", "engine", "measure"},
    "server": {"knowledge", "engine", "models", "tokenizer", "data", "text"},
    "ui": {"text"},
    "integrations": {"knowledge", "engine"},
    "launch": {"server", "train", "export", "knowledge", "engine", "data", "models"},
    "api": {
        "integrations",
        "launch",
        "server",
        "train",
        "export",
        "knowledge",
        "engine",
        "measure",
        "data",
        "tokenizer",
        "models",
        "text",
    },
    "cli": {"api", "launch"},
}
UI_FOUNDATION = {"client", "wire", "settings", "platform", "text", "errors", "messages", "strings"}
ONLY_IN = {
    "ray": "launch/ray_",
    "streamlit": "ui/",
    "xllamacpp": "engine/llama/",
    "llama_cpp": "engine/llama_cpp/",
    "sentencepiece": "tokenizer/sentence",
    "tokenizers": "tokenizer/ engine/onnx/vocabulary",
    "onnxruntime": "engine/onnx/",
    "onnx": "engine/onnx/",
    "docx": "knowledge/loaders/docx",
    "pptx": "knowledge/loaders/pptx",
    "openpyxl": "knowledge/loaders/xlsx",
    "rapidocr": "knowledge/loaders/ocr",
    "pypdfium2": "knowledge/loaders/pdf",
    "PIL": "knowledge/loaders/pdf_page export/paper",
    "watchfiles": "cli/watch",
    "usearch": "knowledge/index/",
    "opencc": "text/fold",
    "pyarrow": "data/files/parquet launch/storage",
    "chromadb": "knowledge/stores/chroma",
    "psycopg": "knowledge/stores/pgvector",
    "opensearchpy": "knowledge/stores/opensearch",
    "langchain_core": "integrations/langchain knowledge/stores/langchain",
    "langchain_openai": "integrations/langchain",
    "torch": "train/ export/ launch/torchrun engine/transformers engine/sentence_transformers",
    "sentence_transformers": "engine/sentence_transformers",
    "mcp": "integrations/mcp.py server/tools/mcp.py",
    "jsonschema": "server/tools/mcp.py",
    "tensorboardX": "train/board",
}


def _room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[tuple[str, int]]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {(alias.name, node.lineno) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            assert node.module
            if node.module == "mofang":
                found |= {(f"mofang.{alias.name}", node.lineno) for alias in node.names}
            else:
                found.add((node.module, node.lineno))
    return found


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(SOURCE)) for path in FILES])
def test_imports_follow_the_table(path: Path) -> None:
    room = _room(path)
    for name, line in _imports(path):
        top, *rest = name.split(".")
        if top == "mofang":
            target = rest[0] if rest else "__init__"
            if target in (room, "__init__", "__version__"):
                continue
            if room in FOUNDATION:
                allowed = set(FOUNDATION[FOUNDATION.index(room) + 1 :])
            elif room == "ui":
                allowed = UI_FOUNDATION
            elif room in ("__init__", "__main__"):
                allowed = {"api", "cli"}
            else:
                assert room in ROOMS, f"{room} is not a room of docs/architecture.md"
                allowed = ROOMS[room] | set(FOUNDATION)
            assert target in allowed, f"{path.relative_to(SOURCE)}:{line}: {room} may not import {target}"
        elif top in ONLY_IN:
            place = path.relative_to(SOURCE).as_posix()
            assert place.startswith(tuple(ONLY_IN[top].split())), (
                f"{place}:{line}: {top} is imported only in {ONLY_IN[top]}"
            )


def test_every_room_on_disk_is_in_the_table() -> None:
    known = {*ROOMS, *FOUNDATION, "__init__", "__main__", "py.typed", "__pycache__"}
    assert {_room(path) for path in SOURCE.iterdir()} <= known
