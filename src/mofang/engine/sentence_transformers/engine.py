"""An embedder in a Hugging Face folder, in a child with PyTorch; none of it is imported here.

Pooling, normalisation and layers after it are the folder's own (modules.json, 1_Pooling/config.json). So are its
prompts (config_sentence_transformers.json: "query"; "document" or "passage"), unless the manifest's "prefixes" says
otherwise. The manifest's "transformers" chooses dtype and device, as for the engine of that name.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from mofang.engine.base import Purpose
from mofang.engine.prefixes import prefixes
from mofang.engine.transformers.engine import check
from mofang.engine.worker.embed import WorkerEmbedder
from mofang.engine.worker.process import WorkerProcess
from mofang.errors import Invalid
from mofang.messages import Progress
from mofang.models.base import ModelRef
from mofang.models.formats import hf
from mofang.platform import BESIDE_CHAT, lower_priority
from mofang.settings import Settings
from mofang.strings import say

NAMES: dict[Purpose, tuple[str, ...]] = {"query": ("query",), "passage": ("document", "passage", "corpus")}
"""What folders call the prompt of a purpose."""


async def load(ref: ModelRef, settings: Settings, *, progress: Callable[[Progress], None]) -> WorkerEmbedder:
    """Raises Unreadable for a damaged folder or pickled weights, Invalid for a manifest that wants the folder's code."""
    options = check(ref.manifest.get("transformers") or {})
    if options.pop("trust_remote_code"):
        values = {"engine": "sentence_transformers", "name": "trust_remote_code", "value": True, "known": "false"}
        raise Invalid("engine.manifest_value", param="trust_remote_code", **values)
    asked = await asyncio.to_thread(prompts, ref)
    configuration = {"engine": "sentence_transformers", "model": ref.name, "n_ctx": settings.n_ctx, **options}
    module = "mofang.engine.sentence_transformers.child"
    process = await WorkerProcess.load(module, configuration, ref, settings, progress)
    lower_priority(process.pid, BESIDE_CHAT)  # a folder being read must not take the speed of an answer

    def given(texts: Sequence[str], purpose: Purpose) -> dict[str, Any]:
        return {"texts": list(texts), "prompt": asked[purpose]}

    bare = not (ref.path / "modules.json").is_file()
    notices = (say("engine.mean_pooling", model=ref.name),) if bare else ()
    return WorkerEmbedder(ref, process, engine="sentence_transformers", asked=given, notices=notices)


def prompts(ref: ModelRef) -> dict[Purpose, str]:
    """What is put before queries and passages: the manifest's word, else the folder's, else that of its family."""
    stated = hf.read_json(ref.path / "config_sentence_transformers.json", missing={})
    own = stated.get("prompts") or {}
    if "prefixes" in ref.manifest or not any(own.get(name) for names in NAMES.values() for name in names):
        usual = str(own.get(stated.get("default_prompt_name") or "", ""))
        found = prefixes(ref)
        return found if "prefixes" in ref.manifest or any(found.values()) else {"query": usual, "passage": usual}
    return {purpose: next((str(own[name]) for name in names if name in own), "") for purpose, names in NAMES.items()}
