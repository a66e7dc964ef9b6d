"""The Amazon review data sets of McAuley's group: editions, their fields, their categories, where they lie."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AmazonEdition:
    """One edition: what its reviews' fields are called and where its files are; `{}` stands for the category."""

    name: str
    span: str
    user: str
    item: str
    time: str
    rating: str
    reviews: tuple[str, ...]
    metadata: tuple[str, ...]
    page: str


_SNAP = tuple(f"{scheme}://snap.stanford.edu/data/amazon/productGraph/categoryFiles" for scheme in ("https", "http"))
_V2 = ("https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2", "https://jmcauley.ucsd.edu/data/amazon_v2")
_2023 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"
_2023_OLD = "https://datarepo.eng.ucsd.edu/mcauley_group/data/amazon_2023/raw"

EDITIONS = {
    edition.name: edition
    for edition in (
        AmazonEdition(
            "2014",
            "May 1996 to July 2014",
            *("reviewerID", "asin", "unixReviewTime", "overall"),
            tuple(f"{base}/reviews_{{}}.json.gz" for base in _SNAP),
            tuple(f"{base}/meta_{{}}.json.gz" for base in _SNAP),
            "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
        ),
        AmazonEdition(
            "2018",
            "May 1996 to October 2018",
            *("reviewerID", "asin", "unixReviewTime", "overall"),
            tuple(f"{base}/categoryFiles/{{}}.json.gz" for base in _V2),
            tuple(f"{base}/metaFiles2/meta_{{}}.json.gz" for base in _V2),
            "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/",
        ),
        AmazonEdition(
            "2023",
            "May 1996 to September 2023",
            *("user_id", "parent_asin", "timestamp", "rating"),
            tuple(f"{base}/review_categories/{{}}.jsonl.gz" for base in (_2023, _2023_OLD)),
            tuple(f"{base}/meta_categories/meta_{{}}.jsonl.gz" for base in (_2023, _2023_OLD)),
            "https://amazon-reviews-2023.github.io/",
        ),
    )
}

_ALL = (
    *("Automotive", "Books", "CDs_and_Vinyl", "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry"),
    *("Digital_Music", "Electronics", "Grocery_and_Gourmet_Food", "Home_and_Kitchen", "Kindle_Store"),
    *("Movies_and_TV", "Musical_Instruments", "Office_Products", "Patio_Lawn_and_Garden", "Pet_Supplies"),
    *("Sports_and_Outdoors", "Tools_and_Home_Improvement", "Toys_and_Games", "Video_Games"),
)
_SINCE_2018 = (
    *("All_Beauty", "Appliances", "Arts_Crafts_and_Sewing", "Gift_Cards", "Industrial_and_Scientific"),
    *("Magazine_Subscriptions", "Software"),
)
CATEGORIES: dict[str, tuple[str, ...]] = {
    "2014": (
        *_ALL,
        *("Amazon_Instant_Video", "Apps_for_Android", "Baby", "Beauty", "Health_and_Personal_Care"),
    ),
    "2018": (*_ALL, *_SINCE_2018, "AMAZON_FASHION", "Luxury_Beauty", "Prime_Pantry"),
    "2023": (
        *_ALL,
        *_SINCE_2018,
        *("Amazon_Fashion", "Baby_Products", "Beauty_and_Personal_Care", "Handmade_Products"),
        *("Health_and_Household", "Health_and_Personal_Care", "Subscription_Boxes", "Unknown"),
    ),
}
# The paper's fashion set has the keys of the 2018 edition (METHODS: rank, tech1, also_buy).
DEFAULT_EDITION = {"fashion": "2018"}
SHORT = {"amazon-fashion": "fashion"}


def slug(category: str) -> str:
    """The preset name of a category: `Video_Games` is `video-games`."""
    name = category.lower().replace("_", "-")
    return SHORT.get(name, name)


def categories_by_name() -> dict[str, dict[str, str]]:
    """Preset name -> edition -> the category's name there."""
    found: dict[str, dict[str, str]] = {}
    for edition, names in CATEGORIES.items():
        for category in names:
            found.setdefault(slug(category), {})[edition] = category
    return dict(sorted(found.items()))
