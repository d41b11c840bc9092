"""What the child computes with: the folder's own modules (modules.json), as sentence-transformers reads them.

Nothing is fetched, no Python of the folder is run, and no pickle is read.
"""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import torch

from mofang.engine.base import Vectors
from mofang.engine.transformers.core import check_memory, check_weights, chosen_device, chosen_dtype
from mofang.errors import Unreadable

BATCH = 32
"""Texts computed together. sentence-transformers sorts a call's texts by length first, so that little is padded."""


class Core:
    """One model. Any thread may call; one computes at a time."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        folder = Path(configuration["path"])
        weights = check_folder(folder)
        torch.set_num_threads(configuration["n_threads"])
        device = chosen_device(configuration["device"])
        dtype = chosen_dtype(configuration["dtype"], device)
        check_memory(weights, dtype, device, configuration["model"])
        self._model = sentence_transformers.SentenceTransformer(
            str(folder),
            device=str(device),
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"dtype": dtype, "use_safetensors": True},
        )
        self._lock = threading.Lock()
        library = f"sentence-transformers {sentence_transformers.__version__}"
        self.facts: dict[str, Any] = {
            "n_ctx": int(self._model.max_seq_length or configuration["n_ctx"]),
            "dimensions": int(self._model.get_embedding_dimension() or 0),
            "provider": f"{library} {device.type} {str(dtype).removeprefix('torch.')}",
        }

    def tokenize(self, text: str) -> list[int]:
        """Ids without those around a text."""
        return list(self._model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def lengths(self, texts: Sequence[str], prompt: str) -> list[int]:
        """Tokens of each text as it is computed: with its prompt and those around it, nothing cut off."""
        if not texts:
            return []
        found = self._model.tokenizer([prompt + text for text in texts], truncation=False, verbose=False)
        return [len(ids) for ids in found["input_ids"]]

    def embed(self, texts: Sequence[str], prompt: str) -> Vectors:
        """(len(texts), dimensions) float32, each of length 1."""
        if not texts:
            return np.zeros((0, self.facts["dimensions"]), np.float32)
        with self._lock:
            # A prompt of "" is one: it keeps the folder's default prompt away.
            found = self._model.encode(list(texts), prompt=prompt, batch_size=BATCH, show_progress_bar=False)
        rows = np.asarray(found, np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)  # here: in bfloat16 a length is right to 3 digits
        return np.asarray(rows / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def check_folder(folder: Path) -> Path:
    """The folder of the transformer's weights. Raises Unreadable where it, or a layer after it, has pickles only."""
    paths = [folder / str(module.get("path", "")) for module in modules(folder)]
    for path in paths:
        if (path / "pytorch_model.bin").is_file() and not any(path.glob("*.safetensors")):
            raise Unreadable("engine.pickled_weights", path=path, file="pytorch_model.bin")
    weights = next((path for path in [folder, *paths] if any(path.glob("*.safetensors"))), folder)
    check_weights(weights)
    return weights


def modules(folder: Path) -> list[dict[str, Any]]:
    """What modules.json names, in order; none where there is no such file. Raises Unreadable for a damaged one."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise ValueError("not a list of objects")
    except ValueError as error:
        raise Unreadable("models.config_broken", path=path, why=error) from error
    return found
