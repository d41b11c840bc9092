"""What the benchmarks of quantization begin with: a model to quantize, and texts to calibrate and measure with."""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def imported(model: str) -> Any:
    """The Hugging Face folder of a model that is there as GGUF (a ModelRef), made when it is not there yet."""
    import mofang
    from mofang import settings
    from mofang.errors import NotFound
    from mofang.models.store import ModelStore

    store = ModelStore(settings.load())
    try:
        return store.get(f"{model}-hf")
    except NotFound:
        mofang.import_gguf(model)
        return store.get(f"{model}-hf")


def pages(name: str) -> list[str]:
    """The Chinese pages of one of the corpora."""
    file = HERE / "corpora" / name / "corpus.jsonl"
    if not file.is_file():
        sys.exit(f"{file} is missing: bench/corpora/fetch.sh, then {name}_beir.py")
    return [json.loads(line)["text"] for line in file.open(encoding="utf-8")]


def rows(name: str, target: Path) -> Path:
    """Those pages as a file to calibrate with, one a row."""
    lines = (json.dumps({"text": page}, ensure_ascii=False) for page in pages(name))
    target.write_text("\n".join(lines), encoding="utf-8")
    return target
