"""What is done once for a machine: build llama.cpp for it, and find out how a model runs best on it."""

from typing import ClassVar, Literal

from pydantic import Field

from mofang.recipes.base import Recipe


class Build(Recipe):
    """llama.cpp compiled for this machine, proved against the wheel before it is used."""

    kind: ClassVar[str] = "build"
    command: ClassVar[str] = "engine {kind}"
    worker: ClassVar[str] = "mofang.engine.prove:run"
    extra: ClassVar[str] = ""
    library: ClassVar[str] = ""

    backend: Literal["auto", "cpu", "cuda", "vulkan", "metal"] = "auto"
    """What computes; "auto": the GPU whose toolchain and device are both here, else the CPU."""
    compiler: str = "auto"
    """C compiler: a name such as gcc-13 or clang; "zig": the wheel ziglang; "auto": CC and CXX, cc, gcc, clang."""
    proof_model: str = ""
    """The model that it proves itself with; the smallest chat model here, else the smallest that can be brought."""


class Tune(Recipe):
    """How one model runs best on this machine: measured, stored, used from its next load on."""

    kind: ClassVar[str] = "tune"
    command: ClassVar[str] = "engine {kind}"
    worker: ClassVar[str] = "mofang.engine.tune:run"
    extra: ClassVar[str] = ""
    library: ClassVar[str] = ""

    model: str = Field(min_length=1)
    """The chat model to measure."""
    mix: Literal["both", "chat", "documents"] = "both"
    """What it is mostly used for: chat answers at length, documents have long prompts and answers that quote."""
    cache_types: list[Literal["q8_0", "q4_0"]] = Field(default_factory=list)
    """Smaller types of key-value cache to try as well; they save memory and change answers a little."""
    budget_s: float = Field(default=0, ge=0)
    """Seconds to take at most; 0: 90 for a model of half a gigabyte, more in proportion for larger ones."""

    def title(self) -> str:
        return self.model


class Bench(Recipe):
    """How fast a model is on this machine at several lengths of context."""

    kind: ClassVar[str] = "bench"
    command: ClassVar[str] = "engine {kind}"
    worker: ClassVar[str] = "mofang.engine.bench:run"
    extra: ClassVar[str] = ""
    library: ClassVar[str] = ""

    model: str = Field(min_length=1)
    """The chat model to measure."""
    contexts: list[int] = Field(default_factory=lambda: [128, 1024, 4096], min_length=1)
    """Tokens of context to measure at."""
    n_answer: int = Field(default=64, ge=1, le=4096)
    """Tokens of each answer."""
    rounds: int = Field(default=3, ge=1, le=100)
    """How often each is measured; the median counts."""
    defaults: bool = False
    """Without what tuning chose."""

    def title(self) -> str:
        return self.model
