"""`llmemb.toml`: read with strict keys, overridden by flags for one command, written with comments."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, ValidationError, field_validator

from llmemb_cli.config.backbones import BACKBONES, BackboneName
from llmemb_cli.config.data import DataSettings
from llmemb_cli.config.embed import EmbedSettings
from llmemb_cli.config.evaluate import EvalSettings
from llmemb_cli.config.fields import Section, describe, setting
from llmemb_cli.config.methods import METHODS, MethodName
from llmemb_cli.config.prompt import PromptSettings
from llmemb_cli.config.rat import RatSettings, negatives_as_given
from llmemb_cli.config.said import SaidSettings
from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.config.tslrec import TslrecSettings
from llmemb_cli.errors import WrongUseError, near_match
from llmemb_cli.workspace.store import write_text


class PlanSettings(Section):
    backbones: list[BackboneName] = setting(["sasrec"], "backbones that `llmemb run` trains", min_length=1)
    methods: list[MethodName] = setting(["none", "llmemb"], "methods that `llmemb run` trains", min_length=1)
    seeds: list[Annotated[int, Field(ge=0)]] = setting([], "seeds that `llmemb run` trains; empty: the seed above")

    @field_validator("backbones", "methods", "seeds")
    @classmethod
    def once(cls, value: list[Any]) -> list[Any]:
        """Each of them once: what is trained twice is there once."""
        return list(dict.fromkeys(value))


class Settings(Section):
    """All settings of a workspace; one field per table of `llmemb.toml`."""

    seed: int = setting(42, "seed of everything random", ge=0)
    data: DataSettings = DataSettings()
    prompt: PromptSettings = PromptSettings()
    scft: ScftSettings = ScftSettings()
    embed: EmbedSettings = EmbedSettings()
    said: SaidSettings = SaidSettings()
    tslrec: TslrecSettings = TslrecSettings()
    rat: RatSettings = RatSettings()
    eval: EvalSettings = EvalSettings()
    run: PlanSettings = PlanSettings()
    # What llmemb.toml says of `[rat]` ("") and, over it, of one backbone, one method or both ("bert4rec-llmemb");
    # and over all of these what flags say, in the same order.
    rat_tables: dict[str, dict[str, Any]] = Field(default_factory=dict)
    rat_flags: dict[str, dict[str, Any]] = Field(default_factory=dict)


WHICH = ("backbone", "method", "without")  # settings of `[rat]` that say which run it is

SECTIONS: dict[str, type[Section]] = {
    "data": DataSettings,
    "prompt": PromptSettings,
    "scft": ScftSettings,
    "embed": EmbedSettings,
    "said": SaidSettings,
    "tslrec": TslrecSettings,
    "rat": RatSettings,
    "eval": EvalSettings,
    "run": PlanSettings,
}


def setting_help(path: str) -> str:
    """The help text of `section.key`, ending with its default, for a command's option."""
    section, key = path.split(".")
    default = SECTIONS[section].model_fields[key].get_default(call_default_factory=True)
    text = describe(SECTIONS[section], key)
    return text if default in ("", None, []) else f"{text} [default: {_shown(default)}]"


def setting_choices(path: str) -> list[str]:
    """The values that `section.key`, or each entry of it, can have; none where it is free."""
    section, key = path.split(".")
    annotation = SECTIONS[section].model_fields[key].annotation
    while get_origin(annotation) is list:
        annotation = get_args(annotation)[0]
    return [str(choice) for choice in get_args(annotation)] if get_origin(annotation) is Literal else []


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def load_settings(path: Path, overrides: dict[str, Any] | None = None) -> Settings:
    """Read `llmemb.toml` and put `overrides` ({"rat.alpha": 0.05}; None values are ignored) over it.

    An override of a table ("rat.llmemb.alpha") counts for that backbone or method alone, as in the file; every
    override wins over every table of the file.

    Raises:
        WrongUseError: the file is not TOML, or a key or value is wrong; names line, key and near match.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WrongUseError("not UTF-8 text", where=str(path)) from error
    values, tables = _read(text, str(path))
    if "model" in values.get("scft", {}):
        values["scft"]["model"] = _model_path(values["scft"]["model"], path.parent)
    flags: dict[str, dict[str, Any]] = {"": {}}
    for key, value in (overrides or {}).items():
        if value is None:
            continue
        table, name = _table_of(key)
        if table:
            _check_table(table, {name: value}, "command line", text="")
        else:
            _put(values, key, _model_path(value, Path.cwd()) if key == "scft.model" else value)
        if key.startswith("rat.") and (table or name not in WHICH):
            flags.setdefault(table, {})[name] = value
    if len(tables) > 1 or any(flags.values()):
        rat = values.setdefault("rat", {})
        default = RatSettings()
        rat |= _layered(tables, flags, rat.get("backbone", default.backbone), rat.get("method", default.method))
        values |= {"rat_tables": tables, "rat_flags": flags}
    return _check(values, source="command line", text="")


def _read(text: str, source: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The checked values of a TOML text, and its tables of `[rat]` (see `Settings.rat_tables`)."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise WrongUseError(f"not valid TOML: {error}", where=source) from error
    rat = values.get("rat")
    rat = rat if isinstance(rat, dict) else {}
    tables = {name: rat.pop(name) for name, value in list(rat.items()) if isinstance(value, dict)}
    for name in ("rat_tables", "rat_flags"):
        if name in values:
            raise WrongUseError(f"unknown setting {name}", where=source, hint="[rat.bert4rec] is a table of its own")
    _check(values, source=source, text=text)
    for name, table in tables.items():
        _check_table(name, table, source, text)
    return values, {"": dict(rat)} | tables


def _check_table(name: str, table: dict[str, Any], source: str, text: str) -> None:
    """Refuse a table `[rat.<name>]` of something else than a backbone, a method or both, or with wrong keys."""
    names = [*BACKBONES, *METHODS, *(f"{backbone}-{method}" for backbone in BACKBONES for method in METHODS)]
    line = _line_of(text, f"rat.{name}")
    where = f"{source}, line {line}" if line else source
    if name not in names:
        close = near_match(name, names)
        raise WrongUseError(
            f"[rat.{name}]: no backbone, method, or both as in bert4rec-llmemb, of that name",
            where=where,
            hint=f"did you mean [rat.{close}]?" if close else None,
        )
    for key in WHICH:
        if key in table:
            raise WrongUseError(f"[rat.{name}] cannot set {key}", where=where, hint="it belongs under [rat]")
    _check({"rat": table}, source=source, text=text, table=f"rat.{name}")


def own_tables(backbone: str, method: str) -> list[str]:
    """Names of the tables of `[rat]` that count for a run; later ones win."""
    return [backbone, method, f"{backbone}-{method}"]


def _layered(
    tables: dict[str, dict[str, Any]], flags: dict[str, dict[str, Any]], backbone: str, method: str
) -> dict[str, Any]:
    """What `tables` of llmemb.toml and, over all of them, `flags` say of a run."""
    found: dict[str, Any] = {}
    for layer in (tables, flags):
        for name in ("", *own_tables(backbone, method)):
            found |= {key: value for key, value in layer.get(name, {}).items() if key not in WHICH}
    return found


def rat_for(settings: Settings, **changes: Any) -> RatSettings:
    """`[rat]` as it is with `changes`, such as another backbone or method.

    What llmemb.toml and flags say of the new backbone and method alone (`[rat.bert4rec]`) takes the place of what
    they say of the old ones. Settings changed since (in Python) stay as they are.
    """

    def told(backbone: str, method: str) -> dict[str, Any]:
        layered = _layered(settings.rat_tables, settings.rat_flags, backbone, method)
        return RatSettings.model_validate(layered).model_dump()

    now = settings.rat.model_dump()
    before = told(now["backbone"], now["method"])
    names = {key: changes.get(key, now[key]) for key in WHICH}
    since = {key: value for key, value in now.items() if value != before[key]}
    return RatSettings.model_validate(told(names["backbone"], names["method"]) | since | names | changes)


def _model_path(model: str, base: Path) -> str:
    """A model's folder or GGUF file by its absolute path, so that later commands find it from anywhere.

    In llmemb.toml it is given from the workspace, in a flag from the current directory; names stay as they are.
    """
    looks_like_a_path = isinstance(model, str) and ("/" in model or model.startswith(("~", ".")) or os.sep in model)
    if looks_like_a_path or str(model).endswith(".gguf"):
        path = base / Path(model).expanduser()
        if path.exists():
            return str(path.resolve())
    return model


def make_settings(overrides: dict[str, Any] | None = None) -> Settings:
    """Default settings with `overrides` put over them, also of tables ("rat.llmemb.alpha")."""
    values: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    for key, value in (overrides or {}).items():
        if value is None:
            continue
        table, name = _table_of(key)
        if table:
            _check_table(table, {name: value}, "command line", text="")
            tables.setdefault(table, {})[name] = value
        else:
            _put(values, key, value)
    if tables:
        values["rat_tables"] = {"": dict(values.get("rat", {}))} | tables
    return _check(values, source="command line", text="")


def _table_of(key: str) -> tuple[str, str]:
    """The table and the name of a key: llmemb and alpha of "rat.llmemb.alpha", no table of any other."""
    section, _, rest = key.partition(".")
    table, _, name = rest.rpartition(".")
    return (table, name) if section == "rat" else ("", name)


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["rat.alpha=0.05", "scft.loss=paper"]` as overrides; values are TOML, or plain text.

    Raises:
        WrongUseError: no `=`, or an unknown key.
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise WrongUseError(f"--set {assignment}: expected KEY=VALUE", hint="for example --set rat.alpha=0.05")
        try:
            result[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            result[key.strip()] = value.strip()
    return result


def known_keys() -> list[str]:
    """Every setting as `key` or `section.key`."""
    return ["seed"] + [f"{name}.{key}" for name, section in SECTIONS.items() for key in section.model_fields]


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a known key; what is given for a list is its entries with commas between, or its only one."""
    if key not in known_keys():
        close = near_match(key, known_keys())
        raise WrongUseError(
            f"unknown setting {key}",
            where="--set",
            hint=f"did you mean {close}?" if close else "`llmemb config` lists all",
        )
    *section, name = key.split(".")
    table = values.setdefault(section[0], {}) if section else values
    annotation = (SECTIONS[section[0]] if section else Settings).model_fields[name].annotation
    if get_origin(annotation) is list and not isinstance(value, list):
        value = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else [value]
    table[name] = value


def _check(values: dict[str, Any], *, source: str, text: str, table: str = "") -> Settings:
    """The settings that `values` are; errors name the line of `text`, under [`table`] if that is given."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
        shown = f"{table}.{key.partition('.')[2]}" if table else key
        line = _line_of(text, shown)
        where = f"{source}, line {line}" if line else source
        if first["type"] == "extra_forbidden":
            close = near_match(key, known_keys() + list(SECTIONS))
            raise WrongUseError(
                f"unknown setting {shown}", where=where, hint=f"did you mean {close}?" if close else None
            ) from None
        known = re.findall(r"'([^']+)'", first["ctx"]["expected"]) if first["type"] == "literal_error" else []
        close = near_match(str(first["input"]), known)
        raise WrongUseError(
            f"setting {shown}: {first['msg'].lower()}, got {first['input']!r}",
            where=where,
            hint=f"did you mean {close}?" if close else None,
        ) from None


def _line_of(text: str, key: str) -> int | None:
    """The line of `section.key` in a TOML text, for error messages."""
    *section, name = key.split(".")
    inside = not section
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped.startswith("["):
            if stripped.strip("[] ") == key:
                return number
            inside = bool(section) and stripped.strip("[] ") == ".".join(section)
        elif inside and stripped.split("=")[0].strip() == name:
            return number
    return None


def write_settings(path: Path, settings: Settings, *, keep: set[str] | None = None) -> None:
    """Write `llmemb.toml`: every setting with its comment; those at their default are commented out.

    `keep` names settings (`section.key`) that are written out even at their default.
    """
    lines = [
        "# Settings of this workspace. A line that starts with `# name =` shows a default: take the `# ` away to",
        "# change it. Flags (and --set section.name=value) override a setting for one command. What is under a table",
        "# such as [rat.bert4rec], [rat.llmemb] or [rat.bert4rec-llmemb] counts for that backbone or method alone.",
        "",
        f"# {describe(Settings, 'seed')}",
        f"seed = {settings.seed}",
    ]
    defaults = Settings()
    for name, section in SECTIONS.items():
        lines += ["", f"[{name}]"]
        for key in section.model_fields:
            value, default = _as_given(getattr(settings, name), key), _as_given(getattr(defaults, name), key)
            active = value != default or f"{name}.{key}" in (keep or set())
            line = f"# {key} = (not set)" if value is None else f"{'' if active else '# '}{key} = {_toml(value)}"
            lines += [f"# {describe(section, key)}", line]
        if name == "rat":
            for own in filter(None, settings.rat_tables):
                values = settings.rat_tables[own]
                lines += ["", f"[rat.{own}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    write_text(path, "\n".join(lines) + "\n")


def _as_given(section: Section, key: str) -> Any:
    """What a setting is, as one writes it into the file."""
    if isinstance(section, RatSettings) and key == "negatives":
        return negatives_as_given(section)
    return getattr(section, key)


def update_settings(path: Path, changes: dict[str, Any]) -> None:
    """Set keys ("rat.alpha", "rat.bert4rec.alpha") in an existing `llmemb.toml`; comments and layout stay.

    A setting takes the place of the comment that shows its default.

    Raises:
        WrongUseError: a change is not valid; the file stays as it was.
    """
    import tomlkit

    document = tomlkit.parse(_uncommented(path.read_text(encoding="utf-8"), changes))
    made = []
    for key, value in changes.items():
        *section, name = key.split(".")
        table: Any = document
        for part in section:
            if part not in table:
                table[part] = tomlkit.table()
                made.append(table[part])
            table = table[part]
        table[name] = value
    for table in made:
        table.add(tomlkit.nl())
    text = tomlkit.dumps(document)
    _read(text, str(path))
    write_text(path, text)


def _uncommented(text: str, changes: dict[str, Any]) -> str:
    """The text with a value for each changed setting whose default stands in a comment and that is not set."""
    values, lines, section = tomllib.loads(text), [], ""
    for line in text.splitlines():
        if header := re.fullmatch(r"\[([^\[\]]+)\]", line.strip()):
            section = header[1]
        shown = re.match(r"# (\w+) = ", line)
        key = f"{section}.{shown[1]}" if shown else ""
        unset = shown is not None and section in SECTIONS and shown[1] not in values.get(section, {})
        lines.append(f"{key.rpartition('.')[2]} = {_toml(changes[key])}" if unset and key in changes else line)
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    import tomlkit

    if isinstance(value, dict):
        table = tomlkit.inline_table()
        table.update(value)
        return table.as_string()
    return str(tomlkit.item(value).as_string())
