"""The tokenizer of a model by its name, or of whatever lies at a path."""

from pathlib import Path

from mofang import settings
from mofang.errors import MofangError, NotFound
from mofang.models.base import ModelRef
from mofang.models.store import ModelStore
from mofang.tokenizer.base import Tokenizer
from mofang.tokenizer.load import load


def find(name: str, *, source: bool = False) -> tuple[Tokenizer, ModelRef | None]:
    """The tokenizer, and the model, where it is one's; `source` as of `load`. Raises NotFound, Unreadable."""
    path = Path(name).expanduser()
    store = ModelStore(settings.load())
    if not path.exists():
        if "/" in name or "\\" in name:
            raise NotFound("tokenizer.no_tokenizer_named", name=name)
        ref = store.get(name)
        return load(ref.path, source=source), ref
    tokenizer = load(path, source=source)
    try:
        return tokenizer, store.get_or_path(str(path.absolute()))
    except MofangError:  # a tokenizer alone, without a model around it
        return tokenizer, None
