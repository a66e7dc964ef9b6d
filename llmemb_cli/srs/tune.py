"""Search of settings by validation NDCG@10, with Optuna's tree-structured Parzen estimator; test items are not read.

A search is a directory `tune/<name>/`: `study.json` says what is searched over which settings, `trials.jsonl` holds
one line a finished trial. The next trial depends on the seed and on those lines alone, so an interrupted search asks
again for the trial it was at, and the training of that trial goes on from its checkpoint.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.config.runs import HOW_OF_RAT, run_name, vectors_needed, without_effect
from llmemb_cli.config.settings import (
    Settings,
    known_keys,
    load_settings,
    parse_assignments,
)
from llmemb_cli.errors import BadDataError, InterruptedRunError, LlmembError, MissingError, WrongUseError, near_match
from llmemb_cli.progress import Reporter
from llmemb_cli.seeds import numpy_rng, stream_seed
from llmemb_cli.srs.tune_keep import keep_best
from llmemb_cli.workspace.locate import PLAIN_NAME, Workspace
from llmemb_cli.workspace.stage import output_fingerprint, partial_of
from llmemb_cli.workspace.store import append_jsonl, read_json, read_jsonl, write_json, write_parquet, write_text

NAMED = ("rat.backbone", "rat.method")  # have flags of their own
SHARED = (*NAMED, "rat.without")  # they say which run it is, so no table of `[rat]` holds them
FIELDS = {"trial", "settings", "run", "made", "NDCG@10", "epochs", "seconds"}  # of every line of trials.jsonl
LOG_FROM = 10.0  # a range whose ends differ by this factor is searched on a logarithmic scale

Range = tuple[float, float]
Space = dict[str, Range | list[Any]]


def parse_space(texts: list[str]) -> Space:
    """`["rat.dropout=0.1,0.5", "rat.alpha=1e-3..1"]` as lists of choices and ranges.

    Raises:
        WrongUseError: no values, an unknown setting, or one that is not of `[rat]`.
    """
    space: Space = {}
    for text in texts:
        key, _, values = text.partition("=")
        if key not in known_keys() or not key.startswith("rat."):
            close = near_match(key, [name for name in known_keys() if name.startswith("rat.")])
            raise WrongUseError(
                f"{key}: settings of [rat] can be searched", hint=f"did you mean {close}?" if close else None
            )
        if key in SHARED:
            flag = f"--{key[4:]}" if key in NAMED else f"--set {key}"
            raise WrongUseError(f"{key} says which run it is, and is not searched", hint=f"{flag}, a search for each")
        if key in space:
            raise WrongUseError(f"{key} is given twice", hint="put all its values into one, with commas between")
        low, dots, high = values.partition("..")
        if dots:
            try:
                ends: list[Any] = [parse_assignments([f"{key}={end}"])[key] for end in (low, high)]
                if not all(isinstance(end, (int, float)) for end in ends) or not ends[0] < ends[1]:
                    raise TypeError
                space[key] = (ends[0], ends[1])
            except TypeError:
                raise WrongUseError(
                    f"{text}: a range goes from a number to a larger one", hint="rat.alpha=0.001..1"
                ) from None
        elif values:
            space[key] = [parse_assignments([f"{key}={value}"])[key] for value in values.split(",")]
        else:
            raise WrongUseError(
                f"{text}: no values", hint="for example rat.dropout=0.1,0.3,0.5 or rat.alpha=0.001..1"
            )
    return space


def run_tune(
    workspace: Workspace,
    space: Space,
    overrides: dict[str, Any],
    report: Reporter,
    *,
    trials: int,
    minutes: float = 0.0,
    name: str | None = None,
    keep: bool = False,
) -> dict[str, Any]:
    """Train `trials` runs with settings from `space` and say which validates best.

    Of the trained runs the best one is kept. What is searched, and `overrides`, counts for this backbone and method
    alone: a collaborative run that trials start from or align to is trained once, as llmemb.toml says, and kept.

    Args:
        overrides: settings that differ from llmemb.toml in all trials.
        minutes: no trial is started later than this after the call; 0: no limit.
        name: of the search; default: backbone, method and seed.
        keep: write the best settings, and the overrides, into llmemb.toml for this backbone and method alone.

    Raises:
        WrongUseError: `name` is no plain one or a search over other settings, or a value of the space is not allowed.
        MissingError: Optuna is not installed.
        BadDataError: no user has a validation item, or the list of trials is damaged.
        InterruptedRunError: a signal came; the same call goes on.
    """
    fixed = load_settings(workspace.settings_file, overrides)
    table = f"rat.{fixed.rat.backbone}-{fixed.rat.method}"
    common = _of_table(table, overrides)
    fixed = load_settings(workspace.settings_file, common)
    idle = _without_effect(workspace, common, space, table)
    if idle:
        report.warn(f"no effect on {table[4:]}, so all trials are alike in it: {', '.join(idle)}")
    name = name or f"{fixed.rat.backbone}-{fixed.rat.method}-{fixed.seed}"
    folder = _folder(workspace, name)
    done = _open_study(folder, workspace, fixed, space, report)
    last = time.monotonic() + minutes * 60 if minutes else math.inf
    while len(done) < trials and time.monotonic() <= last and not exhausted(space, done):
        chosen = suggest(space, done, fixed.seed)
        report.note(f"trial {len(done) + 1} of {min(trials, _combinations(space))}: {shown(chosen)}")
        record = _trial(workspace, common | _of_table(table, chosen), chosen, len(done), report)
        append_jsonl(folder / "trials.jsonl", record)
        _drop_beaten(workspace, done, record)
        done.append(record)
    write_results(folder, done)
    best = _best(done)
    if best is None:
        reason = done[-1].get("reason") if done else None
        raise LlmembError(
            "no trial has finished" + (f"; the last one failed: {reason}" if reason else ""),
            hint="give it more --minutes, or look at the settings searched",
        )
    # All that makes the best run what it is, also what was the same in all trials, with all digits: the command finds
    # that run and trains no other.
    chosen = {key: value for key, value in best["settings"].items() if key not in idle}
    flags = {key: value for key, value in common.items() if key not in NAMED} | _of_table(table, chosen)
    if keep:
        kept = {key: value for key, value in flags.items() if key.startswith(f"{table}.")}
        best["run"] = keep_best(workspace, common, kept, report)
        flags = {key: value for key, value in flags.items() if key not in kept}
    return {
        "name": name,
        "path": str(folder),
        "trials": done,
        "best": best,
        "table": table,
        "command": f"llmemb rat --backbone {fixed.rat.backbone} --method {fixed.rat.method}"
        + "".join(f" --set {shlex.quote(f'{key}={value}')}" for key, value in flags.items()),
    }


def _without_effect(workspace: Workspace, common: dict[str, Any], space: Space, table: str) -> list[str]:
    """Keys that are searched and change the run with none of the values.

    Every value is read once, beside some of the others' values.

    Raises:
        WrongUseError: a value is not allowed.
    """
    idle = set(space)
    for at in range(max(map(len, space.values()))):
        values = {key: values[at % len(values)] for key, values in space.items()}
        settings = load_settings(workspace.settings_file, common | _of_table(table, values))
        idle &= {f"rat.{key}" for key in without_effect(settings)}
    return sorted(idle)


def _of_table(table: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of `[rat]` ("rat.alpha") as those of one of its tables ("rat.sasrec-llmemb.alpha")."""
    return {
        f"{table}.{key[4:]}" if key.startswith("rat.") and key.count(".") == 1 and key not in SHARED else key: value
        for key, value in settings.items()
    }


def _folder(workspace: Workspace, name: str) -> Path:
    """The directory of a search, whose name is as plain as that of a run: it lies in `tune/` and nowhere else."""
    if not PLAIN_NAME.fullmatch(name):
        raise WrongUseError(
            f"{name!r} is no name for a search",
            hint="letters, digits and -._+= are allowed, the first a letter or digit",
        )
    return workspace.root / "tune" / name


def _open_study(
    folder: Path, workspace: Workspace, fixed: Settings, space: Space, report: Reporter
) -> list[dict[str, Any]]:
    """The trials so far of a search that is the same one."""
    searched = {key: list(values) if isinstance(values, tuple) else values for key, values in space.items()}
    study = {
        "space": searched,
        "ranges": [key for key, values in space.items() if isinstance(values, tuple)],
        "settings": fixed.rat.model_dump(mode="json", exclude={key.removeprefix("rat.") for key in space}),
        "seed": fixed.seed,
        "data": output_fingerprint(workspace.data),
    }
    if (folder / "study.json").is_file():
        before, now = _searched(read_json(folder / "study.json")), _searched(json.loads(json.dumps(study)))
        if differing := [key for key in sorted(before | now) if before.get(key) != now.get(key)]:
            raise WrongUseError(
                f"the search {folder.name} is another one, with other {', '.join(differing)}",
                where=str(folder),
                hint="give this one another --name, or remove the directory",
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "study.json", study)
    done = _read_trials(folder / "trials.jsonl", report)
    _check_vectors(folder, workspace, fixed, done)
    return done


def _read_trials(log: Path, report: Reporter) -> list[dict[str, Any]]:
    """The finished trials. A last line that was cut is taken out of the file: its trial is made again."""
    done, cut = read_jsonl(log, FIELDS)
    if cut:
        report.note(f"the last line of {log} was cut: trial {len(done) + 1} is made again")
        write_text(log, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in done))
    return done


def _searched(study: dict[str, Any]) -> dict[str, Any]:
    """What makes a search this one, each setting by its name: not the device and the like, which change no trial.

    A setting that was not there when the search began was as it is by default.
    """
    settings = RatSettings().model_dump(mode="json") | study["settings"]
    searched = HOW_OF_RAT | {key.removeprefix("rat.") for key in study["space"]}
    rest = {f"rat.{key}": value for key, value in settings.items() if key not in searched}
    return {key: value for key, value in study.items() if key != "settings"} | rest


def _check_vectors(folder: Path, workspace: Workspace, fixed: Settings, done: list[dict[str, Any]]) -> None:
    """Refuse to compare trials with those made from LLM vectors that are no longer there."""
    kind = vectors_needed(fixed)
    now = None if kind is None else output_fingerprint(workspace.embeddings(kind))
    then = {record.get("vectors") for record in done} - {None}
    if now is not None and then - {now}:
        raise WrongUseError(
            f"the trials of {folder.name} were made from other vectors than embeddings/{kind} has now",
            where=str(folder),
            hint="give this search another --name, or remove the directory",
        )


def suggest(space: Space, done: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The settings of the next trial, from the seed and the trials so far alone; none twice while there are others.

    Raises:
        MissingError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise MissingError("`llmemb tune` needs Optuna", hint="pip install 'llmemb[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spread = {key: _distribution(key, values) for key, values in space.items()}
    sampler = optuna.samplers.TPESampler(seed=stream_seed(seed, "tune", len(done)) % 2**32)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for record in done:
        state = optuna.trial.TrialState.FAIL if record["NDCG@10"] is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(
                params=record["settings"], distributions=spread, value=record["NDCG@10"], state=state
            )
        )
    chosen, tried = dict(study.ask(spread).params), [record["settings"] for record in done]
    choices = _choices(space)
    if chosen not in tried or choices is None or exhausted(space, done):
        return chosen
    every = (dict(zip(space, values, strict=True)) for values in itertools.product(*choices))
    left = [settings for settings in every if settings not in tried]
    return left[int(numpy_rng(seed, "tune", len(done)).integers(len(left)))]


def exhausted(space: Space, done: list[dict[str, Any]]) -> bool:
    """Whether every combination of settings has been tried; never where one has a range."""
    return len({json.dumps(record["settings"], sort_keys=True) for record in done}) >= _combinations(space)


def _combinations(space: Space) -> float:
    """How many settings there are to try; infinite where one has a range."""
    choices = _choices(space)
    return math.inf if choices is None else math.prod(map(len, choices))


def _choices(space: Space) -> list[list[Any]] | None:
    """The values of every setting; None where one has a range."""
    lists = [values for values in space.values() if isinstance(values, list)]
    return lists if len(lists) == len(space) else None


def _distribution(key: str, values: Range | list[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, list):
        return CategoricalDistribution(values)
    low, high = values
    wide = low > 0 and high / low >= LOG_FROM
    if RatSettings.model_fields[key.removeprefix("rat.")].annotation is int:
        return IntDistribution(int(low), int(high), log=wide)
    return FloatDistribution(float(low), float(high), log=wide)


def _trial(
    workspace: Workspace, overrides: dict[str, Any], values: dict[str, Any], number: int, report: Reporter
) -> dict[str, Any]:
    """Train one run. One that diverges, or whose values do not fit, is a failed trial, not the end of the search."""
    from llmemb_cli.srs.train import run_rat

    settings = load_settings(workspace.settings_file, overrides)
    in_file = load_settings(workspace.settings_file)
    run = run_name(settings, in_file)
    there, work = workspace.run(run).exists(), partial_of(workspace.run(run))
    begun_before = work.exists()
    record: dict[str, Any] = {"trial": number + 1, "settings": values, "run": run, "made": not there}
    try:
        result = run_rat(workspace, settings, report, in_file=in_file)
    except (InterruptedRunError, MissingError):
        raise
    except LlmembError as error:
        if isinstance(error, (WrongUseError, BadDataError)) and not _names(error, values):
            raise  # every trial would meet it
        report.warn(f"trial {number + 1} failed: {error.message}")
        if not begun_before:
            shutil.rmtree(work, ignore_errors=True)
        return record | {"NDCG@10": None, "epochs": None, "seconds": None, "reason": error.message}
    summary = result.manifest["summary"]
    if summary["best_validation"] is None:
        raise BadDataError("no user has a validation item, so there is nothing to search by")
    return record | {
        "NDCG@10": summary["best_validation"],
        "epochs": summary["best_epoch"],
        "seconds": result.manifest["seconds"],
        "vectors": result.manifest["made_from"]["inputs"].get("embeddings"),
    }


def _names(error: LlmembError, values: dict[str, Any]) -> bool:
    """Whether an error speaks of a searched setting: other values may do, so that the search can go on.

    What is said of no searched setting, such as vectors that are missing, is taken to hold for all trials.
    """
    said = f"{error.message} {error.hint or ''}"
    return any(re.search(rf"\b{re.escape(key)}\b", said) for key in values)


def _best(done: list[dict[str, Any]]) -> dict[str, Any] | None:
    finished = [record for record in done if record["NDCG@10"] is not None]
    return max(finished, key=lambda record: record["NDCG@10"], default=None)


def _drop_beaten(workspace: Workspace, done: list[dict[str, Any]], record: dict[str, Any]) -> None:
    """Remove the run that does not validate best, if a trial of this search made it."""
    before = _best(done)
    if before is None or record["run"] == before["run"]:
        return
    wins = (record["NDCG@10"] or -math.inf) > before["NDCG@10"]
    loser = before if wins else record
    if any(one["made"] for one in [*done, record] if one["run"] == loser["run"]):
        shutil.rmtree(workspace.run(loser["run"]), ignore_errors=True)


def write_results(folder: Path, done: list[dict[str, Any]]) -> None:
    """`results.parquet`: one row a trial, a column a setting."""
    import polars as pl

    rows = [
        {"trial": one["trial"], "NDCG@10": one["NDCG@10"], "epochs": one["epochs"], "seconds": one["seconds"]}
        | one["settings"]
        for one in done
    ]
    if rows:
        write_parquet(folder / "results.parquet", pl.DataFrame(rows, infer_schema_length=None))


def shown(values: dict[str, Any]) -> str:
    """Settings on one line."""
    return ", ".join(f"{key} {_text(value)}" for key, value in values.items())


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
