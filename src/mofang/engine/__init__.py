"""The room of what generates: which engines there are, and which one holds a model. See docs/adding-engine.md."""

from mofang.models.base import ModelRef
from mofang.registry import Entry, Registry

ENGINES = Registry(
    "engine",
    {
        "llama": Entry("mofang.engine.llama.engine:load", "GGUF models, in a llama.cpp server of their own"),
        "onnx": Entry("mofang.engine.onnx.engine:load", "BERT embedders in GGUF, by onnxruntime, in a child process"),
        "transformers": Entry(
            "mofang.engine.transformers.engine:load",
            "Hugging Face folders, in PyTorch, in a child process",
            extra="train",
            library="torch",
        ),
        "sentence_transformers": Entry(
            "mofang.engine.sentence_transformers.engine:load",
            "embedders in Hugging Face folders, by sentence-transformers, in a child process",
            extra="train",
            library="sentence_transformers",
        ),
        "llama_cpp": Entry(
            "mofang.engine.llama_cpp.engine:load",
            "GGUF models through llama-cpp-python's bindings, in a child process",
            extra="llama_cpp",
            library="llama_cpp",
        ),
        "remote": Entry("mofang.engine.remote:load", "a model behind another OpenAI-compatible server"),
        "echo": Entry("mofang.engine.echo:load", "repeats the last message; for tests and load trials"),
        "hash": Entry("mofang.engine.hashed:load", "vectors from hashed characters; for tests"),
    },
)
"""An entry is `async def load(ref, settings, *, progress) -> Engine`."""

BY_FORMAT = {"gguf": "llama", "hf": "transformers"}
"""Which engine reads a format, where the manifest names none."""
BY_KIND = {("gguf", "embedding"): "onnx", ("hf", "embedding"): "sentence_transformers"}
"""The same for models of one kind; goes before."""


def engine_name(ref: ModelRef) -> str:
    """The engine that holds this model: its manifest's word, else its format's."""
    by_format = BY_KIND.get((ref.format, ref.kind)) or BY_FORMAT.get(ref.format, ref.format)
    return str(ref.manifest.get("engine") or by_format)
