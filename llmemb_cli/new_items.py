"""Items that come later: through the prompt, LoRA and PCA of the workspace's own, and through a run's adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from llmemb_cli.assets.identity import model_identity
from llmemb_cli.config.methods import OWN_VECTORS
from llmemb_cli.config.prompt import PROMPT_OFF, PromptSettings
from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.columns import guess_column, id_column
from llmemb_cli.datasets.readers.sources import plain_file
from llmemb_cli.datasets.readers.tabular import LINE, column_names, read_table, table_kind
from llmemb_cli.devices import pick_device
from llmemb_cli.embeddings.external import read_blocks
from llmemb_cli.embeddings.pca import read_pca
from llmemb_cli.embeddings.table import MADE_BY, NAME, VECTORS, EmbeddingTable, read_ids, write_table
from llmemb_cli.errors import BadDataError, WrongUseError
from llmemb_cli.llm.encode import as_made, fetch_llm, note_cut, open_llm, resolve
from llmemb_cli.llm.vectors import encode
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.stage import build_prompts
from llmemb_cli.srs.run_mapping import RunMapping
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import StageResult, run_stage
from llmemb_cli.workspace.rows import RowsFile, blocks, map_rows
from llmemb_cli.workspace.stage import Stage, output_fingerprint, readable_manifest, require_stage
from llmemb_cli.workspace.store import sha256_json, write_parquet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


STAGE = "embed items"
RESULT = ["item_id", "embeddings", "reduced"]  # how the columns of a result begin
# Names of files that somebody may expect and that no directory should bear.
OTHER_FORMATS = {".npy", ".npz", ".csv", ".tsv", ".json", ".jsonl", ".safetensors", ".pt", ".txt"}


def embed_new_items(
    workspace: Workspace,
    settings: Settings,
    items: Path,
    report: Reporter,
    *,
    out: Path | None = None,
    run: str | None = None,
    tuned: bool = True,
    force: bool = False,
) -> tuple[StageResult, Path]:
    """Vectors of the items in a file: LLM vectors, their PCA, and with `run` the item embeddings of its adapter.

    The prompt template, the LLM and its reading of prompts are those that the workspace's own vectors were made
    with, whatever llmemb.toml says now. Items that the workspace has are computed again, not looked up.

    Returns:
        What was done, and the directory or Parquet file with the result.

    Raises:
        WrongUseError: the workspace has no vectors yet, the run has no adapter, or `out` would take the place of
            something else.
        BadDataError: columns are missing, ids are not distinct, or an input of the vectors has changed since.
    """
    _check_target(out, items)
    if run is not None and (used := _external_vectors_of(workspace, run)) is not None:
        raise WrongUseError(
            f"{run} was trained on vectors made elsewhere, {used}: the LLM has none like them",
            where=str(workspace.run(run)),
            hint="give those of the new items: --vectors FILE",
        )
    kind = "scft" if tuned else "base"
    directory = workspace.embeddings(kind)
    manifest = require_stage(directory, made_by=MADE_BY[kind])
    _check_inputs(workspace, manifest, kind)
    mapping = None if run is None else RunMapping(workspace, run, kind, report)
    settings, adapter = resolve(workspace, _as_embedded(settings, manifest), tuned)
    fetch_llm(settings, adapter, report)
    _check_weights(settings, manifest, directory)
    as_file = out is not None and out.suffix == ".parquet"
    folder = _own_folder(workspace, items) if out is None or as_file else out
    inputs = {"embeddings": directory} | ({"run": workspace.run(run)} if run is not None else {})
    stage = Stage(STAGE, folder.resolve(), 1, {"kind": kind}, inputs=inputs, files={"items": items.resolve()})
    frame = read_items(workspace, items, settings)
    device = pick_device(settings.embed.device)

    def build(work: Path) -> dict[str, Any]:
        loaded = open_llm(settings, adapter, device, report)
        done = encode(loaded, frame["prompt"], frame["item_id"], settings, work, report)
        note_cut(work, frame["item_id"].gather(done.cut).to_list(), settings, report)
        about = _write_tables(work, items, frame["item_id"], done.vectors, directory, mapping)
        return about | {"run": run, "bias": mapping and mapping.bias, "cut": len(done.cut)}

    result = run_stage(stage, build, force=force, report=report, device=device)
    return result, _at(stage, result, out if as_file else None)


def map_external_items(
    workspace: Workspace,
    settings: Settings,
    file: Path,
    report: Reporter,
    *,
    run: str,
    ids: Path | None = None,
    out: Path | None = None,
    force: bool = False,
) -> tuple[StageResult, Path]:
    """Vectors of new items that were made elsewhere, and the item embeddings of a run that was trained on such.

    Returns:
        as `embed_new_items`.

    Raises:
        WrongUseError: the run was not trained on vectors made elsewhere, or has no adapter; or of `out` and `file`.
        BadDataError: the vectors have another width than those that the run was trained on, or are not one finite
            vector an id.
    """
    _check_target(out, file)
    kind = _external_vectors_of(workspace, run)
    if kind is None:
        raise WrongUseError(
            f"{run} was not trained on vectors made elsewhere",
            where=str(workspace.run(run)),
            hint="--items FILE has the LLM read new items; `llmemb rat --set rat.vectors=NAME` trains on others",
        )
    directory = workspace.embeddings(kind)
    mapping = RunMapping(workspace, run, kind, report)
    as_file = out is not None and out.suffix == ".parquet"
    folder = _own_folder(workspace, file) if out is None or as_file else out
    inputs = {"embeddings": directory, "run": workspace.run(run)}
    files = {"items": file.resolve()} | ({"ids": ids.resolve()} if ids else {})
    stage = Stage(STAGE, folder.resolve(), 1, {"kind": kind}, inputs=inputs, files=dict(files))

    def build(work: Path) -> dict[str, Any]:
        parts = list(read_blocks(file, ids, settings, report))
        item_ids = pl.concat([names for names, _ in parts]) if parts else pl.Series([], dtype=pl.String)
        twice = item_ids.filter(item_ids.is_duplicated())
        if len(twice):
            raise BadDataError(f"item {twice[0]} has two vectors", where=str(file))
        width, widths = mapping.pca.mean.shape[0], {block.shape[1] for _, block in parts}
        if widths != {width}:
            raise BadDataError(
                f"vectors of {', '.join(map(str, sorted(widths))) or 'no'} numbers, those of {kind} have {width}",
                where=str(file),
            )
        write_table(work, EmbeddingTable(item_ids, np.concatenate([block for _, block in parts])))
        return _write_tables(work, file, item_ids, map_rows(work / VECTORS, NAME), directory, mapping) | {
            "run": run,
            "bias": mapping.bias,
        }

    result = run_stage(stage, build, force=force, report=report)
    return result, _at(stage, result, out if as_file else None)


def _external_vectors_of(workspace: Workspace, run: str) -> str | None:
    """The name of the vectors made elsewhere that a run was trained on, or None."""
    used = require_stage(workspace.run(run), made_by="llmemb rat")["summary"].get("vectors")
    return None if used in OWN_VECTORS else used


def _write_tables(
    work: Path, file: Path, item_ids: pl.Series, vectors: np.ndarray, directory: Path, mapping: RunMapping | None
) -> dict[str, Any]:
    """Write what follows from new items' vectors, which stand in `work`; returns what the manifest says of all."""
    pca = read_pca(directory)
    tables = {NAME: vectors.shape[1], "reduced": len(pca.components)}
    _write_mapped(work / "reduced.safetensors", "reduced", vectors, pca.transform, len(pca.components))
    if mapping is not None:
        tables["item_embeddings"] = mapping.hidden_size
        path = work / "item_embeddings.safetensors"
        _write_mapped(path, "item_embeddings", vectors, mapping, mapping.hidden_size)
    known = int(item_ids.is_in(read_ids(directory).implode()).sum())
    return {"file": str(file.resolve()), "items": len(item_ids), "known": known, "tables": tables}


def _at(stage: Stage, result: StageResult, file: Path | None) -> Path:
    """Where the result lies: in the directory of the stage, or in one Parquet file that is written from it."""
    if file is None:
        return stage.path
    write_parquet(file, _as_frame(stage.path, result.manifest["summary"]["tables"]))
    return file


def _own_folder(workspace: Workspace, items: Path) -> Path:
    """Where the result of a file goes: a directory of its name, or one more where a file elsewhere has that name."""
    folder, path = workspace.root / "new-items" / items.stem, str(items.resolve())
    before = (readable_manifest(folder) or {}).get("summary", {}).get("file", path)
    return folder if before == path else folder.with_name(f"{folder.name}-{sha256_json(path)[:6]}")


def _check_target(out: Path | None, items: Path) -> None:
    """A directory of results takes the place of what was there: only of earlier results, never of other files."""
    if out is None:
        return
    if out.resolve() == items.resolve():
        raise WrongUseError("--out is the file of --items", where=str(out), hint="give the result a name of its own")
    if out.suffix in OTHER_FORMATS and not out.is_dir():
        raise WrongUseError(
            f"--out writes a directory or NAME.parquet, not {out.suffix}",
            where=str(out),
            hint="a directory holds safetensors and ids.parquet",
        )
    if not out.exists():
        return
    if out.suffix == ".parquet" and out.is_file():
        if not _is_result(out):
            raise WrongUseError(
                "--out is another file, which would be lost",
                where=str(out),
                hint="name a new file, or remove this one",
            )
        return
    if not out.is_dir():
        raise WrongUseError(
            "--out is a file that is not .parquet", where=str(out), hint="a directory, or a file called NAME.parquet"
        )
    if any(out.iterdir()) and (readable_manifest(out) or {}).get("stage") != STAGE:
        raise WrongUseError(
            "--out is a directory with other files, which would be lost", where=str(out), hint="name a new directory"
        )


def _is_result(file: Path) -> bool:
    """Whether a Parquet file has the columns of an earlier result."""
    try:
        return list(pl.read_parquet_schema(file))[: len(RESULT)] == RESULT
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return False


def _write_mapped(
    path: Path, name: str, vectors: np.ndarray, mapped: Callable[[np.ndarray], np.ndarray], width: int
) -> None:
    """Write `mapped(vectors)`, (n, width), some rows at a time."""
    with RowsFile(path, name, len(vectors), width) as file:
        for rows in blocks(*vectors.shape):
            file.write(np.arange(rows.start, rows.stop), mapped(vectors[rows]))


def _as_frame(folder: Path, tables: Mapping[str, int]) -> pl.DataFrame:
    """The result as one table: `item_id` and a list of numbers for each kind of vector."""
    frame = pl.DataFrame({"item_id": read_ids(folder)})
    for name, width in tables.items():
        values = map_rows(folder / f"{name}.safetensors", name)
        frame = frame.with_columns(pl.Series(name, values, dtype=pl.Array(pl.Float32, width)).arr.to_list())
    return frame


def _check_inputs(workspace: Workspace, manifest: dict[str, Any], kind: str) -> None:
    """The prompts and the adapter must still be those that the workspace's vectors came from."""
    inputs = manifest["made_from"]["inputs"]
    for role, path in (("prompts", workspace.prompts), *((("scft", workspace.scft()),) if kind == "scft" else ())):
        if output_fingerprint(path) != inputs[role]:
            raise BadDataError(
                f"{role} changed after the workspace's items were embedded: new vectors would not fit the old",
                where=str(path),
                hint=f"run `{MADE_BY[kind]}` first",
            )


def _check_weights(settings: Settings, manifest: dict[str, Any], directory: Path) -> None:
    """The model must still be the one that the workspace's vectors came from."""
    made, now = manifest["made_from"]["files"].get("model", {}).get("sha256"), model_identity(settings.scft.model)
    if made is not None and now.get("sha256") != made:
        raise BadDataError(
            f"the workspace's items were embedded with other weights than {settings.scft.model} has now",
            where=str(directory),
            hint=f"run `{MADE_BY[directory.name]}` again, or put the old weights back",
        )


def _as_embedded(settings: Settings, manifest: dict[str, Any]) -> Settings:
    """`settings` with the LLM, its reading of prompts and its precision as the workspace's vectors were made."""
    precision = manifest["made_from"]["settings"]["precision"]
    embed = settings.embed.model_copy(update={"precision": precision})
    return as_made(settings, manifest["made_from"]).model_copy(update={"embed": embed})


def read_items(workspace: Workspace, path: Path, settings: Settings) -> pl.DataFrame:
    """The items of a file as prompts (`item_id`, `parts`, `prompt`), by the template the workspace's were made with.

    Raises:
        BadDataError: a column of the template is missing, an id is empty or there twice; names them.
    """
    card = require_stage(workspace.data, made_by="llmemb init")["summary"]
    made = require_stage(workspace.prompts, made_by="llmemb prompt")
    template = PromptSettings.model_validate(PROMPT_OFF | made["made_from"]["settings"])
    wanted = template.attributes or list(card["attributes"])
    names = column_names(path)
    key = id_column(str(path), names, settings.data.item_column)
    source = {name: _source_column(name, names, settings) for name in wanted}
    missing = [name for name in wanted if source[name] not in names]
    # In JSON Lines a value that is not there is not written; in a table its column would be.
    absent = missing if table_kind(plain_file(path)) == "jsonl" and len(missing) < len(wanted) else []
    if missing and not absent:
        raise BadDataError(
            f"the items lack the columns {', '.join(missing)}; there are: {', '.join(names)}",
            where=str(path),
            hint=f"the prompts of this workspace are made of {', '.join(wanted)}; a column may be empty",
        )
    present = {name: column for name, column in source.items() if name not in absent}
    table = read_table(path, [key, *present.values()])
    if table.rejects:
        first = table.rejects[0]
        raise BadDataError(f"{len(table.rejects)} lines: {first.reason}", where=f"{path}, line {first.line}")
    items = table.frame.rename({key: "item_id"} | {old: name for name, old in present.items()})
    items = items.with_columns(pl.lit(None, pl.String).alias(name) for name in absent)
    for what, bad in (
        ("no id", items["item_id"].is_null()),
        ("an id that others have too", items["item_id"].is_duplicated()),
    ):
        if bad.any():
            line = items.filter(bad)[LINE][0]
            raise BadDataError(f"{bad.sum()} items have {what}", where=f"{path}, line {line}")
    # Names of the template that these items need not have: what it renames or limits beyond what it shows.
    shown = template.model_copy(
        update={key: {n: v for n, v in getattr(template, key).items() if n in wanted} for key in ("rename", "limits")}
    )
    return build_prompts(items, wanted, made["summary"]["instruction"], shown, str(path))


def _source_column(name: str, names: list[str], settings: Settings) -> str:
    """The file's column for an attribute: the title may still be called as in the user's first files."""
    if name == "title" and name not in names:
        for other in (settings.data.title_column, guess_column("title_column", names)[0]):
            if other and other in names:
                return other
    return name
