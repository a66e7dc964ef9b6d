"""How a setting is described: once, here, for help texts, `llmemb.toml` comments, checks and docs."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict


def setting(default: Any, help: str, *, unit: str = "", source: str = "", **checks: Any) -> Any:
    """A field with its default, description, unit and source (paper or code it comes from)."""
    extra: JsonDict = {"unit": unit, "source": source}
    if isinstance(default, (list, dict)):
        return Field(default_factory=lambda: default.copy(), description=help, json_schema_extra=extra, **checks)
    return Field(default, description=help, json_schema_extra=extra, **checks)


class Section(BaseModel):
    """A table of `llmemb.toml`: unknown keys are errors, values are checked and never coerced from text."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, strict=False)


def describe(section: type[Section], key: str) -> str:
    """The help text of a setting, with unit and source."""
    field = section.model_fields[key]
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    text = field.description or ""
    notes = [str(extra[name]) for name in ("unit", "source") if extra.get(name)]
    return f"{text} ({'; '.join(notes)})" if notes else text
