"""Make up a Yelp academic data set of any size: its schema, its skew and its text lengths, nobody's words.

    python benchmarks/make_yelp.py --out yelp                                   # as large as Yelp's: about 5 GB
    python benchmarks/make_yelp.py --out tenth --reviews 700000 --users 200000 --businesses 15000

writes `yelp_academic_dataset_review.json` and `yelp_academic_dataset_business.json` as Yelp has shipped them since
2018. Equal options give equal bytes. Memory is 8 bytes a review and 22 a user, and a block of lines.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

BLOCK = 50_000  # lines made and written at once
ALPHABET = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", np.uint8)
FIRST_SECOND = np.datetime64("2005-02-16T03:23:22", "s").astype(int)
LAST_SECOND = np.datetime64("2022-01-19T19:48:45", "s").astype(int)
STARS = np.array([0.153, 0.078, 0.099, 0.208, 0.462])  # shares of 1 to 5 in Yelp's own data
MEDIAN_TEXT, SPREAD_TEXT, LONGEST_TEXT = 405, 0.83, 5000  # characters; log-normal, mean about 560
POOL_WORDS = 400_000
LINE = (
    b'{"review_id":"%b","user_id":"%b","business_id":"%b","stars":%d.0,"useful":%d,"funny":%d,"cool":%d,'
    b'"text":"%b","date":"%b"}\n'
)
CITIES = (
    *(("Philadelphia", "PA"), ("Tucson", "AZ"), ("Tampa", "FL"), ("Indianapolis", "IN"), ("Nashville", "TN")),
    *(("New Orleans", "LA"), ("Reno", "NV"), ("Edmonton", "AB"), ("Saint Louis", "MO"), ("Boise", "ID")),
)
CATEGORIES = (
    *("Restaurants", "Food", "Shopping", "Home Services", "Beauty & Spas", "Nightlife", "Health & Medical"),
    *("Local Services", "Bars", "Automotive", "Event Planning & Services", "Sandwiches", "American (Traditional)"),
    *("Active Life", "Pizza", "Coffee & Tea", "Fast Food", "Breakfast & Brunch", "American (New)", "Burgers"),
    *("Mexican", "Hotels & Travel", "Arts & Entertainment", "Italian", "Chinese", "Hair Salons", "Doctors"),
)
# As Yelp writes them: values are Python literals in a string.
ATTRIBUTES = {
    "BusinessAcceptsCreditCards": ("True", "True", "False"),
    "BikeParking": ("True", "False"),
    "WiFi": ("u'free'", "u'no'", "'free'", "'paid'"),
    "RestaurantsPriceRange2": ("1", "2", "2", "3", "4"),
    "RestaurantsTakeOut": ("True", "True", "False", "None"),
    "Alcohol": ("u'full_bar'", "'beer_and_wine'", "u'none'"),
    "NoiseLevel": ("u'average'", "u'quiet'", "'loud'"),
    "BusinessParking": (
        "{'garage': False, 'street': True, 'validated': False, 'lot': False, 'valet': False}",
        "{'garage': False, 'street': False, 'validated': False, 'lot': True, 'valet': False}",
        "None",
    ),
    "Ambience": (
        "{'romantic': False, 'intimate': False, 'touristy': False, 'hipster': False, 'divey': False, "
        "'classy': False, 'trendy': False, 'upscale': False, 'casual': True}",
        "{'touristy': None, 'hipster': True, 'romantic': None, 'divey': False, 'casual': True}",
    ),
    "GoodForMeal": (
        "{'dessert': False, 'latenight': False, 'lunch': True, 'dinner': True, 'brunch': False, 'breakfast': False}",
    ),
    "RestaurantsDelivery": ("True", "False"),
    "WheelchairAccessible": ("True",),
}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def ids(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count,) S22: random identifiers as Yelp's, 128 bits in URL-safe base 64."""
    letters = rng.integers(0, 64, (count, 22), dtype=np.uint8)
    letters[:, 21] &= 0x30  # 22 letters hold 132 bits: the last four are zero
    return ALPHABET[letters].view("S22").ravel()


def shares(rng: np.random.Generator, count: int, total: int, least: int, shift: float, power: float) -> np.ndarray:
    """(count,) int: how many of `total` rows each has; at least `least`, the rest by Zipf's law (shifted)."""
    least = min(least, total // count)
    weights = (np.arange(count) + shift) ** -power
    counts = least + rng.multinomial(total - least * count, weights / weights.sum())
    return rng.permutation(counts)


def rows_of(rng: np.random.Generator, counts: np.ndarray) -> np.ndarray:
    """(counts.sum(),) int32: every number as often as `counts` says, in random order."""
    rows = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    rng.shuffle(rows)
    return rows


class TextPool:
    """Made-up sentences in one long JSON-escaped text; a review is a piece of it that begins and ends at a word."""

    def __init__(self, rng: np.random.Generator) -> None:
        vocabulary = _vocabulary(rng)
        weights = 1 / (np.arange(len(vocabulary)) + 3.0)
        drawn = rng.choice(len(vocabulary), POOL_WORDS, p=weights / weights.sum())
        ends = rng.choice([b" ", b". ", b", ", b"! ", rb".\n\n"], POOL_WORDS, p=[0.85, 0.07, 0.06, 0.01, 0.01])
        words = [vocabulary[word] + end for word, end in zip(drawn, ends, strict=True)]
        self.text = b"".join(words)
        self.starts = np.concatenate([[0], np.cumsum([len(word) for word in words])])

    def pieces(self, rng: np.random.Generator, count: int) -> Iterator[bytes]:
        """`count` texts."""
        lengths = np.minimum(rng.lognormal(np.log(MEDIAN_TEXT), SPREAD_TEXT, count), LONGEST_TEXT)
        last = np.searchsorted(self.starts, self.starts[-1] - LONGEST_TEXT) - 1
        begin = self.starts[rng.integers(0, last, count)]
        end = self.starts[np.searchsorted(self.starts, begin + lengths)]
        text = self.text
        return (text[low:high] for low, high in zip(begin.tolist(), end.tolist(), strict=True))


def _vocabulary(rng: np.random.Generator) -> list[bytes]:
    """Words of one to four syllables; a few have what needs care in JSON: quotes, slashes, letters beyond ASCII."""
    syllables = [a + b for a in (*"bcdfghlmnprstvw", "st", "tr", "ch") for b in (*"aeiou", "ai", "ee", "ou")]
    words = []
    for number in range(20_000):
        word = "".join(rng.choice(syllables, rng.integers(1, 5)))
        if number % 50 == 17:
            word = (f'"{word}"', f"{word}/{word}", f"{word}é", f"{word} 😋")[number // 50 % 4]
        words.append(json.dumps(word, ensure_ascii=number % 100 < 50)[1:-1].encode())
    return words


def seconds(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count,) datetime64[s]: more of them each year."""
    share = rng.random(count) ** 0.45
    return (FIRST_SECOND + share * (LAST_SECOND - FIRST_SECOND)).astype("datetime64[s]")


def review_lines(rng: np.random.Generator, users: np.ndarray, businesses: np.ndarray, pool: TextPool) -> list[bytes]:
    """A line for every pair of `users` and `businesses` ((rows,) S22)."""
    count = len(users)
    stars = rng.choice(5, count, p=STARS / STARS.sum()) + 1
    votes = np.floor(rng.pareto(1.6, (3, count)) * np.array([[0.9], [0.3], [0.4]])).astype(int)
    dates = np.char.replace(np.datetime_as_string(seconds(rng, count)).astype("S19"), b"T", b" ")
    columns = (ids(rng, count), users, businesses, stars, *votes)
    fields = zip(*(column.tolist() for column in columns), pool.pieces(rng, count), dates.tolist(), strict=True)
    return [LINE % row for row in fields]


def soil(rng: np.random.Generator, lines: list[bytes], share: float) -> None:
    """Break about `share` of the lines, in the ways that files break."""
    for place in np.flatnonzero(rng.random(len(lines)) < share).tolist():
        line = lines[place]
        lines[place] = (
            line[: len(line) // 2] + b"\n",
            line.replace(b'"text":"', b'"text":"\xff\xfe', 1),
            line.replace(b'"user_id":"', b'"user_id":"\\u0000', 1),
            line.replace(b'"user_id":', b'"user":', 1),
            line.replace(b'"business_id":"', b'"business_id":"-', 1),
            line.replace(b'"date":"', b'"date":"about ', 1),
            b"[" + line[:-1] + b"]\n",
        )[int(rng.integers(7))]


def write_reviews(
    file: BinaryIO, chosen: argparse.Namespace, users: np.ndarray, businesses: np.ndarray
) -> np.ndarray:
    """Write all reviews; returns the (businesses,) number of reviews of each."""
    rng = np.random.default_rng([chosen.seed, 1])
    # As in Yelp: most users have one review, no business fewer than five, the largest some thousands.
    of_user = rows_of(rng, shares(rng, len(users), chosen.reviews, 1, len(users) / 2_000, 1.1))
    counts = shares(rng, len(businesses), chosen.reviews, 5, len(businesses) / 1_500, 1.0)
    of_business = rows_of(rng, counts)
    pool = TextPool(rng)
    for start in range(0, chosen.reviews, BLOCK):
        block = slice(start, start + BLOCK)
        lines = review_lines(rng, users[of_user[block]], businesses[of_business[block]], pool)
        if chosen.dirt:
            soil(rng, lines, chosen.dirt)
        file.write(b"".join(lines))
    return counts


def business(rng: np.random.Generator, business_id: str, reviews: int) -> dict[str, object]:
    """One record of business.json."""
    city, state = CITIES[rng.integers(len(CITIES))]
    names = list(ATTRIBUTES)
    picked = [name for name in names if rng.random() < 0.6] if rng.random() < 0.91 else []
    categories = rng.choice(CATEGORIES, rng.integers(1, 7), replace=False).tolist()
    opens, closes = rng.integers(6, 12), rng.integers(17, 24)
    week = DAYS[rng.integers(2) : 7 - rng.integers(2)]
    return {
        "business_id": business_id,
        "name": f"{categories[0].split()[0]} No {rng.integers(1, 100_000)}",
        "address": f"{rng.integers(1, 9_999)} {city.split()[-1]} St, Ste {rng.integers(1, 99)}",
        "city": city,
        "state": state,
        "postal_code": f"{rng.integers(10_000, 99_999)}",
        "latitude": round(float(rng.uniform(27, 53)), 7),
        "longitude": round(float(rng.uniform(-120, -73)), 7),
        "stars": float(rng.integers(2, 11)) / 2,
        "review_count": reviews,
        "is_open": int(rng.random() < 0.8),
        "attributes": {name: ATTRIBUTES[name][rng.integers(len(ATTRIBUTES[name]))] for name in picked} or None,
        "categories": ", ".join(categories) if rng.random() < 0.999 else None,
        "hours": dict.fromkeys(week, f"{opens}:0-{closes}:30") if rng.random() < 0.85 else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=int, default=7_000_000)
    parser.add_argument("--users", type=int, default=2_000_000)
    parser.add_argument("--businesses", type=int, default=150_000)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--dirt", type=float, default=0.0, metavar="SHARE", help="share of broken review lines")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    chosen = parser.parse_args()
    if min(chosen.users, chosen.businesses) < 1 or chosen.reviews < max(chosen.users, chosen.businesses):
        parser.error("there must be at least one user and one business, and as many reviews as either")
    started = time.perf_counter()
    chosen.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([chosen.seed, 0])
    users, businesses = ids(rng, chosen.users), ids(rng, chosen.businesses)
    reviews_file = chosen.out / "yelp_academic_dataset_review.json"
    with reviews_file.open("wb") as file:
        counts = write_reviews(file, chosen, users, businesses)
    with (chosen.out / "yelp_academic_dataset_business.json").open("w", encoding="utf-8") as file:
        for business_id, count in zip(businesses.tolist(), counts.tolist(), strict=True):
            record = business(rng, business_id.decode(), count)
            file.write(json.dumps(record, separators=(",", ":")) + "\n")
    size = reviews_file.stat().st_size
    print(f"{chosen.reviews:,} reviews, {size / 1e9:.2f} GB, in {time.perf_counter() - started:.0f} s: {chosen.out}")


if __name__ == "__main__":
    main()
