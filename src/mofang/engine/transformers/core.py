"""A Core (worker/core.py) of any model that transformers' AutoModelForCausalLM knows. Lives in the child only.

Weights are read from safetensors alone: a pickle can run whatever its author wanted. Answers are computed one token of
one conversation at a time; several conversations take turns, they are not batched.
"""

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, GenerationConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mofang.engine.worker.core import CoreFacts, Logits
from mofang.errors import TooLarge, Unreadable
from mofang.models.formats import hf
from mofang.platform import has_fast_bfloat16, memory

BATCH = 128
"""Tokens of a prompt between two looks; as for llama.cpp on a CPU (engine/llama/provider.py)."""
PROCESS_BYTES = 450 << 20
"""Python with torch and transformers, before any weights; measured 2026-11-24 (bench/training_memory.py has it, too)."""
_BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>")
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
WINDOW = 16
"""Tokens after which text is sent though it may end within a character: no character is that long."""


class TransformersCore:
    """See the module."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        folder = Path(configuration["path"])
        check_weights(folder)
        torch.set_num_threads(configuration["n_threads"])
        device = chosen_device(configuration["device"])
        dtype = chosen_dtype(configuration["dtype"], device)
        check_memory(folder, dtype, device, configuration["model"])
        trusted = bool(configuration["trust_remote_code"])
        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=trusted, use_safetensors=True
        )
        self._model.to(device).eval()
        accepted = inspect.signature(self._model.forward).parameters
        self._cache_name = "cache" if "cache" in accepted else "past_key_values"  # renamed in transformers 5.24
        self._caches: dict[int, DynamicCache] = {}
        self.facts = self._read_facts(folder, configuration, f"{device.type} {str(dtype).removeprefix('torch.')}")

    def _read_facts(self, folder: Path, configuration: dict[str, Any], provider: str) -> CoreFacts:
        generation, tokenizer = self._model.generation_config, self._tokenizer
        stated = generation.eos_token_id
        ends = {*(stated if isinstance(stated, list) else [stated]), tokenizer.eos_token_id} - {None}
        trained = getattr(self._model.config, "max_position_embeddings", None)
        return CoreFacts(
            n_ctx=min(configuration["n_ctx"], trained or configuration["n_ctx"]),
            n_slots=configuration["n_slots"],
            batch=BATCH,
            end_ids=frozenset(int(token) for token in ends),
            n_vocab=len(tokenizer),
            template=hf.template(folder),
            bos=tokenizer.bos_token or "",
            eos=tokenizer.eos_token or "",
            provider=provider,
            defaults=_defaults(generation),
        )

    def encode(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def piece(self, token: int) -> bytes:
        text = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        name = str(self._tokenizer.convert_ids_to_tokens(token))
        if "\ufffd" not in text:
            return text.encode()
        if found := _BYTE_NAME.fullmatch(name):  # sentencepiece
            return bytes([int(found[1], 16)])
        return bytes(_BYTES.get(character, 0x3F) for character in name)  # byte-level BPE; 0x3F is "?"

    def detokenizer(self) -> "Window":
        return Window(self._tokenizer)

    def keep(self, slot: int, n_tokens: int) -> int:
        cache = self._caches.get(slot)
        held = int(cache.get_seq_length()) if cache is not None else 0
        if cache is not None and 0 < n_tokens <= held:
            if n_tokens == held:
                return n_tokens
            if getattr(cache, "is_croppable", False):  # sliding windows cannot go back
                cache.crop(n_tokens - held)
                return n_tokens
        self._caches[slot] = DynamicCache(config=self._model.config)
        return 0

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def feed(self, slot: int, tokens: Sequence[int]) -> Logits:
        cache, device = self._caches[slot], self._model.device
        ids = torch.tensor([list(tokens)], device=device)  # (1, tokens)
        seen = torch.ones((1, cache.get_seq_length() + len(tokens)), dtype=torch.long, device=device)
        found = self._model(
            input_ids=ids, attention_mask=seen, use_cache=True, logits_to_keep=1, **{self._cache_name: cache}
        )
        logits: Logits = found.logits[0, -1].float().cpu().numpy()
        return logits


class Window:
    """A Detokenizer for any tokenizer: decodes the latest tokens together with a few before them, since the text of a
    token depends on its neighbours (spaces, bytes of one character). A character that is not whole yet decodes to
    U+FFFD at the end, and is held back.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = self._read = self._sent = 0
        """First token of the window, first that is new in it, characters of it that were sent."""

    def push(self, token: int) -> str:
        self._ids.append(token)
        text = self._text(len(self._ids))
        whole = text.removesuffix("\ufffd") if len(self._ids) - self._read < WINDOW else text
        piece = whole[self._sent :]
        self._sent = max(self._sent, len(whole))
        if whole == text:
            self._start, self._read = self._read, len(self._ids)
            self._sent = len(self._text(self._read))
        return piece

    def _text(self, end: int) -> str:
        ids = self._ids[self._start : end]
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def check_weights(folder: Path) -> None:
    """Raises Unreadable for a folder whose weights are pickles, or that has none."""
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise Unreadable("engine.pickled_weights", path=folder, file=pickles[0])
    raise Unreadable("models.no_weights", path=folder)


def chosen_device(wanted: str) -> torch.device:
    """CUDA and Metal were not at hand where this was written: only the CPU has been run."""
    if wanted != "auto":
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def chosen_dtype(wanted: str, on: torch.device) -> torch.dtype:
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
    if on.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if on.type == "mps":
        return torch.float16
    return torch.bfloat16 if has_fast_bfloat16() else torch.float32


def check_memory(folder: Path, dtype: torch.dtype, device: torch.device, model: str) -> None:
    """Raises TooLarge before loading what would not fit. (A GPU says so itself.)"""
    needed, available = hf.facts(folder).parameters * dtype.itemsize + PROCESS_BYTES, memory().available
    if device.type == "cpu" and needed > available:
        sizes = {"needed": f"{needed / 1e9:.1f}", "available": f"{available / 1e9:.1f}"}
        raise TooLarge("engine.model_too_large", model=model, **sizes)


def _defaults(generation: GenerationConfig) -> dict[str, Any]:
    """Sampling as the publisher states it in generation_config.json. Its penalty looks at all tokens, not at the last."""
    found: dict[str, Any] = {}
    if generation.repetition_penalty not in (None, 1.0):
        found |= {"repeat_penalty": float(generation.repetition_penalty), "repeat_last_n": -1}
    if generation.do_sample:
        names = ("temperature", "top_p", "top_k", "min_p")
        found |= {name: value for name in names if (value := getattr(generation, name, None)) is not None}
    return found
