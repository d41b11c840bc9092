"""What all recipes share: strict fields, every fault at once, the nearest known name for an unknown one."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mofang.errors import Invalid, NotFound
from mofang.strings import say

R = TypeVar("R", bound="Recipe")


class Recipe(BaseModel):
    """Fields are what people may set. Each field's name and sentence are `recipes.field_<name>` in strings/, or those of
    what `called` says."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    kind: ClassVar[str]
    """Its name in METHODS or EXPORTERS."""
    command: ClassVar[str] = "train {kind}"
    """What tells all of its fields, with --help: of `mofang`."""
    worker: ClassVar[str]
    """"module:function" that a child process calls with (recipe, run)."""
    extra: ClassVar[str] = "train"
    """Optional dependencies that the worker needs; "" for none."""
    library: ClassVar[str] = "torch"
    """The import name whose absence means that `extra` is not installed."""
    called: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Of fields that mean something else here than in other recipes: in words, they are these."""

    def title(self) -> str:
        """A few words for lists of runs."""
        return self.kind

    @classmethod
    def form(cls, lang: str) -> dict[str, Any]:
        """JSON schema of its fields; in words of that language each is called by `title`, and told of by `help`."""
        schema = cls.model_json_schema()
        for name, field in schema.get("properties", {}).items():
            key = cls.words(name)
            field |= {"title": say(key, part="label", lang=lang), "help": say(key, lang=lang)}
            if make := cls.model_fields[name].default_factory:  # which pydantic leaves out
                field["default"] = make()  # type: ignore[call-arg]
        return schema

    @classmethod
    def words(cls, field: str) -> str:
        """The key of its name and sentence in strings/."""
        return f"recipes.field_{cls.called.get(field, field)}"

    def as_yaml(self) -> str:
        """The resolved recipe, every field with its value, as it is kept beside a run."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), allow_unicode=True, sort_keys=False, width=120)
        return text


def read_yaml(path: Path) -> dict[str, Any]:
    """A recipe file as a mapping. Raises NotFound, or Invalid for what is not YAML or not a mapping."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound("recipes.no_such_file", path=path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise Invalid("recipes.not_yaml", path=path, why=why) from error
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise Invalid("recipes.not_a_mapping", path=path)
    return value


def parse(recipe: type[R], values: Mapping[str, Any], overrides: Sequence[str] = ()) -> R:
    """A recipe from `values`, with "key=value" texts laid over them (values are read as YAML).

    Raises Invalid that names all faults at once: each field, what was wrong with its value, what would be right.
    """
    merged = dict(values)
    for text in overrides:
        key, mark, value = text.partition("=")
        if not mark:
            raise Invalid("recipes.bad_override", text=text)
        try:
            merged[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise Invalid("recipes.bad_override", text=text) from error
    try:
        return recipe.model_validate(merged)
    except ValidationError as error:
        faults = [_fault(recipe, fault) for fault in error.errors()]
        raise Invalid(
            "recipes.faults",
            kind=recipe.kind,
            command=recipe.command.format(kind=recipe.kind),
            faults="\n".join(f"  · {fault}" for fault in faults),
        ) from error


def _fault(recipe: type[Recipe], fault: Any) -> str:
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, recipe.model_fields, n=1, cutoff=0.4)
        known = ", ".join(recipe.model_fields)
        return say("recipes.unknown_key_near", name=name, near=near[0]) if near else say(
            "recipes.unknown_key", name=name, known=known
        )  # fmt: skip
    if fault["type"] == "missing":
        return say("recipes.missing_key", name=name)
    shown = (
        fault.get("ctx", {}).get("shown") or repr(fault["input"])[:80]
    )  # what holds a key says what may be shown of it
    return say("recipes.bad_value", name=name, value=shown, why=_why(fault))


def _why(fault: Any) -> str:
    """What would be right, in the reader's language; pydantic's own words for what has no sentence here."""
    try:
        return say(f"recipes.why_{fault['type']}", **fault.get("ctx", {}))
    except KeyError:
        return str(fault["msg"])
