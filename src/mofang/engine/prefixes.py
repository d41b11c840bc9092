"""What an embedder's texts look like before they reach it: its prefixes, and its own tokenizer's normalisation."""

import tomllib
import unicodedata
from importlib.resources import files

from mofang.engine.base import Purpose
from mofang.models.base import ModelRef


def prefixes(ref: ModelRef) -> dict[Purpose, str]:
    """What this embedder wants before queries and passages: its manifest's word, else its family's, else nothing."""
    stated: dict[str, str] | None = ref.manifest.get("prefixes")
    if stated is None:
        told = tomllib.loads(files("mofang.engine").joinpath("embedders.toml").read_text(encoding="utf-8"))
        stated = next((family for family in told["family"] if family["match"] in ref.name.lower()), {})
    return {"query": str(stated.get("query", "")), "passage": str(stated.get("passage", ""))}


def normalised(ref: ModelRef, text: str) -> str:
    """What the model's own tokenizer would make of a text, where the tokenizer in the GGUF does not."""
    return " ".join(unicodedata.normalize("NFKC", text).split()) if ref.manifest.get("normalizer") == "nfkc" else text
