"""This machine's settings: environment variables MOFANG_* over `<home>/settings.toml` over defaults.

Not the place for the recipe of one run (recipes/). Unknown names are refused, with the nearest known one.
"""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from mofang.errors import Invalid

PREFIX = "MOFANG_"
_NOT_SETTINGS = {"MOFANG_CACHE", "MOFANG_TEST_MODELS"}
"""Read by the test suite and the Makefile, not by the program."""


class Settings(BaseSettings):
    """Every setting; the environment name is MOFANG_ + the field's name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, nested_model_default_partial_update=False
    )

    home: Path = Field(default_factory=lambda: Path.home() / ".mofang")
    """All data: models, knowledge bases, conversations, logs."""
    host: str = "127.0.0.1"
    """Address the gateway binds to. Any other than loopback is refused without `api_key`."""
    port: int = Field(default=8642, ge=0, le=65535)
    """Gateway port; 0 takes any free one."""
    ui_port: int | None = Field(default=None, ge=0, le=65535)
    """Workbench port; the one after `port` when not set."""
    api_key: SecretStr | None = None
    """Key that clients must send as "Authorization: Bearer …". None: no key, loopback only."""
    lang: Literal["zh", "en"] = "zh"
    """Language of messages for people."""
    chat_model: str = "auto"
    """What the model name "auto" means in chat; "auto" here: the catalogue's default, or the only one installed."""
    embedding_model: str = "auto"
    """The embedder of new knowledge bases."""
    reranker_model: str = ""
    """The reranker that puts what a search found in order; "": none, "auto": the catalogue's default, or the only one
    installed."""
    model_path: str = ""
    """Folders with models already there, joined with the system's path separator (":" on Linux). Never written to."""
    n_ctx: int = Field(default=8192, ge=256, le=1_048_576)
    """Context for each conversation, in tokens, capped by what the model was trained for."""
    n_slots: int = Field(default=0, ge=0, le=64)
    """Conversations that one model answers at a time; each has its own context of n_ctx tokens. 0: as many as memory
    has room for, 1 to 4."""
    n_threads: int = Field(default=0, ge=0, le=1024)
    """Threads for one model; 0: one a physical core."""
    llama_build: Literal["auto", "wheel", "native"] = "auto"
    """Which llama.cpp runs GGUF models: "native" is what `mofang engine build` made, "auto" that where it is there."""
    auto_tune: bool = True
    """Measure a model briefly, in an idle moment after its first load, and remember how it runs best here."""
    idle_unload_s: float = Field(default=900.0, ge=0)
    """Seconds without a request after which a model leaves memory, unless a request's `keep_alive` says otherwise;
    0: never."""
    memory_budget_mb: int = Field(default=0, ge=0)
    """Memory for all loaded models together, in MB; when one more does not fit, those that were idle longest leave.
    0: what the machine or the container has free, less a reserve."""
    pinned_models: str = ""
    """Names, separated by commas, of models that never leave memory by themselves once they are loaded."""
    save_slots: bool = True
    """Keep the computed state of long prompts on disk (cache/slots) when a model leaves memory, and read it back with
    the model. It holds what the prompts said."""
    slot_cache_mb: int = Field(default=2048, ge=1)
    """Largest size of that folder, in MB; what was used longest ago goes first."""
    queue_limit: int = Field(default=32, ge=1, le=100_000)
    """Requests that may wait for one model; one more is refused with 429."""
    load_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds that a model may take to load."""
    max_tokens: int = Field(default=2048, ge=1)
    """Length of an answer, in tokens, when the request names none: no endless generation by default."""
    chroma_url: SecretStr | None = None
    """Chroma's server, such as http://127.0.0.1:8000, for bases with the store "chroma"; None: embedded in the base."""
    chroma_token: SecretStr | None = None
    """Sent to it as "Authorization: Bearer …"."""
    pgvector_dsn: SecretStr | None = None
    """PostgreSQL with pgvector, for bases with the store "pgvector": postgresql://user:password@host/database."""
    opensearch_url: SecretStr | None = None
    """OpenSearch, for bases with the store "opensearch": https://user:password@host:9200."""
    langchain_store: str = ""
    """For bases with the store "langchain": module:function that makes a LangChain VectorStore."""
    upload_limit_mb: int = Field(default=200, ge=1)
    """Largest document that is taken in, in MB."""
    body_limit_mb: int = Field(default=32, ge=1)
    """Largest request body that is not an upload, in MB (of 1,000,000 bytes)."""
    cors_origins: Annotated[list[str], NoDecode] = Field(default_factory=list)
    """Web pages elsewhere that may call from a browser: exact origins such as https://app.example, joined with commas
    in the environment. "*" is any page, and is refused without `api_key`."""
    log_contents: bool = False
    """Write what was asked and answered into logs/requests.jsonl."""
    shutdown_grace_s: float = Field(default=5.0, ge=0)
    """Seconds that running answers get when the gateway is told to end; then they end with an explicit error."""
    hf_endpoint: str = Field(default_factory=lambda: os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    """Hugging Face or a mirror of it; HF_ENDPOINT is respected."""
    modelscope_endpoint: str = "https://modelscope.cn"
    hub_timeout_s: float = Field(default=3.0, gt=0)
    """A hub that has not answered by then counts as silent, once a process."""

    @field_validator("home", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("cors_origins", mode="after")
    @classmethod
    def _origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            parts = urlsplit(origin)
            if origin != "*" and f"{parts.scheme}://{parts.netloc}" != origin:
                raise ValueError(
                    f"an origin is scheme://host[:port] without a path, such as https://app.example: {origin}"
                )
        return value

    @property
    def workbench_port(self) -> int:
        """The workbench's port: `ui_port`, or the one after the gateway's."""
        return self.ui_port if self.ui_port is not None else (self.port + 1 if self.port else 0)

    @property
    def least_slots(self) -> int:
        """`n_slots`, or the 1 that there is at least."""
        return self.n_slots or 1

    @property
    def pinned(self) -> frozenset[str]:
        """The names of `pinned_models`."""
        return frozenset(name for part in self.pinned_models.split(",") if (name := part.strip()))

    @property
    def model_folders(self) -> list[Path]:
        """The folders of `model_path`."""
        return [Path(part).expanduser() for part in self.model_path.split(os.pathsep) if part]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, _file()))


def _file() -> Path:
    home = os.environ.get(PREFIX + "HOME") or str(Path.home() / ".mofang")
    return Path(home).expanduser().absolute() / "settings.toml"


def secrets() -> list[str]:
    """The settings that are nobody else's to see."""
    return [name for name, field in Settings.model_fields.items() if "Secret" in str(field.annotation)]


def load(**overrides: Any) -> Settings:
    """The settings now; `overrides` (from the command line) win. Raises Invalid for an unknown name or a bad value."""
    file = _file()
    fields = Settings.model_fields
    for name in os.environ:
        if name.startswith(PREFIX) and name not in _NOT_SETTINGS and name[len(PREFIX) :].lower() not in fields:
            raise _unknown(name, where="environment", known=[PREFIX + field.upper() for field in fields])
    if file.is_file():
        try:
            written = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Invalid("core.bad_settings_file", path=file, why=error) from error
        for name in written:
            if name not in fields:
                raise _unknown(name, where=str(file), known=list(fields))
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        fault = error.errors()[0]
        name = str(fault["loc"][0])
        env = PREFIX + name.upper()
        where = "environment" if env in os.environ else str(file)
        raise Invalid("core.bad_setting", name=name, value=fault["input"], why=fault["msg"], where=where) from error


def _unknown(name: str, *, where: str, known: list[str]) -> Invalid:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return Invalid("core.unknown_setting", name=name, where=where, near=near[0] if near else "-")
