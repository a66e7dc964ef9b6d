"""Yelp: every edition since 2013, read as Yelp wrote it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llmemb_cli.datasets.readers.catalogue import features, words
from llmemb_cli.errors import MissingError, WrongUseError
from tests.dataset_fixtures import Files, gz_files, json_lines, prepare, tar_of, write_files, zip_of
from tests.yelp_records import YELP_2015, YELP_2020, YELP_EARLY_2017, YELP_LATE_2017, YELP_RECSYS_2013

ERAS: dict[str, Files] = {
    "recsys-2013": YELP_RECSYS_2013,
    "2015": YELP_2015,
    "early-2017": YELP_EARLY_2017,
    "late-2017": YELP_LATE_2017,
    "2020": YELP_2020,
}


def at(text: str) -> int:
    """Seconds since 1970 of a moment in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def test_recsys_2013_has_neighborhoods_and_no_attributes(tmp_path: Path) -> None:
    data = prepare(tmp_path / "ws", "yelp", source=write_files(tmp_path / "in", YELP_RECSYS_2013))
    assert data.rows() == [
        ("rLtl8ZkDX5vH5nAx9C3q5Q", "rncjoVoEFUJGCUoC1JgnUA", at("2009-05-03")),
        ("rLtl8ZkDX5vH5nAx9C3q5Q", "9yKzy9PApeiPPOUJEtnvkg", at("2011-01-26")),
        ("0a2KyEL0d3Yb1V6aivbIuQ", "rncjoVoEFUJGCUoC1JgnUA", at("2010-12-31")),
    ]
    assert data.log["rating"].to_list() == [4, 5, 2]
    assert data.prompts() == {
        "rncjoVoEFUJGCUoC1JgnUA": "The point of interest has the following attributes:\n"
        "title is Peoria Income Tax Service; categories is Accountants, Professional Services, Tax Services; "
        "city is Peoria; state is AZ; address is 8466 W Peoria Ave Ste 6 Peoria, AZ 85345",
        "9yKzy9PApeiPPOUJEtnvkg": "The point of interest has the following attributes:\n"
        "title is Morning Glory Café; categories is Breakfast & Brunch, Restaurants; city is Phoenix; state is AZ; "
        "neighborhoods is South Mountain, Laveen; address is 6106 S 32nd St Phoenix, AZ 85042",
    }
    assert data.items.select("stars", "review_count", "open").rows() == [("5", "3", "yes"), ("4", "116", "no")]
    assert data.stats["source"]["edition"].startswith("2013")
    assert [entry["name"] for entry in data.stats["source"]["files"]] == [
        "yelp_training_set_business.json",
        "yelp_training_set_review.json",
    ]
    assert data.stats["rejected"] == 0 and data.accounts_for_every_row()


def test_2015_nests_attributes_and_hours(tmp_path: Path) -> None:
    data = prepare(tmp_path / "ws", "yelp", source=write_files(tmp_path / "in", YELP_2015))
    assert data.prompts() == {
        "vcNAWiLM4dR7D2nwwJ7nCA": "The point of interest has the following attributes:\n"
        "title is Eric Goldberg, MD; categories is Doctors, Health & Medical; city is Phoenix; state is AZ; "
        "address is 4840 E Indian School Rd Ste 101 Phoenix, AZ 85018; features is By Appointment Only; "
        "hours is Tuesday 08:00-17:00, Friday 08:00-17:00",
        "JwUE5GmEO-sH1FuwJgKBlQ": "The point of interest has the following attributes:\n"
        "title is Pine Cone Restaurant; categories is Restaurants; city is De Forest; state is WI; "
        "neighborhoods is North Side; address is 6162 US Highway 51 De Forest, WI 53532; "
        "features is Take-out, Good For: lunch, breakfast, Noise Level: average, Attire: casual, "
        "Alcohol: full bar, Price Range: 1",
    }
    assert [row[1:] for row in data.rows()] == [
        ("vcNAWiLM4dR7D2nwwJ7nCA", at("2007-05-17")),
        ("JwUE5GmEO-sH1FuwJgKBlQ", at("2010-03-22")),
    ]
    assert data.stats["source"]["edition"].startswith("2014 to 2018")


def test_early_2017_lists_attributes_and_hours_as_texts(tmp_path: Path) -> None:
    data = prepare(tmp_path / "ws", "yelp", source=write_files(tmp_path / "in", YELP_EARLY_2017))
    assert data.prompts() == {
        "0DI8Dt2PJp07XkVvIElIcQ": "The point of interest has the following attributes:\n"
        "title is Innovative Vapors; categories is Tobacco Shops, Nightlife; city is Tempe; state is AZ; "
        "address is 227 E Baseline Rd, Ste J2; "
        "features is Bike Parking, Business Parking: lot, Restaurants Price Range: 2; "
        "hours is Monday 11:0-21:0, Sunday 11:0-18:0",
        "LTlCaCGZE14GuaUXUGbamg": "The point of interest has the following attributes:\n"
        "title is Cut and Taste; city is Las Vegas; state is NV; neighborhoods is Downtown; "
        "address is 495 S Grand Central Pkwy",
    }
    assert data.items["open"].to_list() == ["no", "yes"]
    assert data.stats["source"]["edition"].startswith("2014 to 2018")


def test_late_2017_is_a_folder_of_short_names_two_levels_deep(tmp_path: Path) -> None:
    data = prepare(tmp_path / "ws", "yelp", source=write_files(tmp_path / "in", YELP_LATE_2017))
    assert data.prompts() == {
        "YDf95gJZaq05wvo7hTQbbQ": "The point of interest has the following attributes:\n"
        "title is Richmond Town Square; categories is Shopping, Shopping Centers; city is Richmond Heights; "
        "state is OH; address is 691 Richmond Rd; "
        "features is Restaurants Price Range: 2, Business Parking: lot, Bike Parking, Wheelchair Accessible; "
        "hours is Monday 10:00-21:00, Sunday 11:00-18:00"
    }
    assert data.rows() == [("cjpdDjZyprfyDG3RlkVG3w", "YDf95gJZaq05wvo7hTQbbQ", at("2016-07-12"))]


def test_since_2018_attributes_are_texts_of_python_literals(tmp_path: Path) -> None:
    data = prepare(tmp_path / "ws", "yelp", source=write_files(tmp_path / "in", YELP_2020))
    assert data.prompts() == {
        "f9NumwFMBDn751xgFiRbNA": "The point of interest has the following attributes:\n"
        "title is The Range At Lake Norman; categories is Active Life, Gun/Rifle Ranges, Guns & Ammo, Shopping; "
        "city is Cornelius; state is NC; address is 10913 Bailey Rd; "
        "features is Business Accepts Credit Cards, Bike Parking, Business Parking: lot, "
        "Restaurants Price Range: 3, WiFi: free, Alcohol: beer and wine, Noise Level: average, "
        "Ambience: hipster, casual, Has TV; hours is Monday 10:0-18:0, Tuesday 8:0-18:30",
        "Yzvjg0SayhoZgCljUJRF9Q": "The point of interest has the following attributes:\n"
        "title is Carlos Santo, NMD; city is Scottsdale; state is AZ",
    }
    assert data.rows() == [
        ("ak0TdVmGKo4pwqdJSTLwWw", "f9NumwFMBDn751xgFiRbNA", at("2014-10-11 03:34:02")),
        ("ak0TdVmGKo4pwqdJSTLwWw", "Yzvjg0SayhoZgCljUJRF9Q", at("2016-03-09")),
        ("eC5evKn1TWDyHCyQAwguUw", "f9NumwFMBDn751xgFiRbNA", at("2015-07-03 20:38:25")),
    ]
    assert data.log["rating"].to_list() == [4, 1, 3]
    assert data.stats["source"]["edition"].startswith("2018 or later")
    assert data.stats["attribute_share"]["features"] == 0.5 and data.stats["attribute_share"]["title"] == 1


def test_what_gives_away_popularity_is_in_prompts_only_when_asked_for(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", YELP_2020)
    data = prepare(tmp_path / "ws", "yelp", source=source, leaking=True)
    prompt = data.prompts()["Yzvjg0SayhoZgCljUJRF9Q"]
    assert prompt.endswith("state is AZ; stars is 5; review_count is 4; open is no")
    card = (data.workspace.data / "card.md").read_text()
    assert "stars, review_count, open" in card


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("form", ["tar", "tgz", "tar.xz", "zip", "zip of tar", "folder of gz", "zip of gz"])
def test_every_form_gives_what_the_folder_gives(tmp_path: Path, era: str, form: str) -> None:
    files = ERAS[era]
    plain = prepare(tmp_path / "plain", "yelp", source=write_files(tmp_path / "in", files))
    source = tmp_path / f"yelp_dataset.{form.split()[0]}"
    if form == "folder of gz":
        source = write_files(tmp_path / "gz", gz_files(files))
    elif form.startswith("zip"):
        inner = {"Yelp JSON/yelp_dataset.tar": tar_of(files)} if form == "zip of tar" else files
        source.write_bytes(zip_of(gz_files(files) if form == "zip of gz" else inner))
    else:
        source.write_bytes(tar_of(files, {"tar": "", "tgz": "gz", "tar.xz": "xz"}[form]))
    packed = prepare(tmp_path / "packed", "yelp", source=source)
    assert packed.items.equals(plain.items) and packed.log.equals(plain.log)
    assert [*packed.stats["rows_read"].values()] == [*plain.stats["rows_read"].values()]
    if form != "folder of gz":
        assert [entry["name"] for entry in packed.stats["source"]["files"]] == [source.name]


def test_the_file_that_is_named_is_the_one_that_is_read(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "in", YELP_2020)
    write_files(folder, {"old_review.json": b"{}\n"})
    with pytest.raises(WrongUseError, match=r"several files could be the reviews: old_review.json, yelp_academic"):
        prepare(tmp_path / "ws", "yelp", source=folder)
    data = prepare(tmp_path / "ws", "yelp", source=folder / "yelp_academic_dataset_review.json")
    assert len(data.log) == 3


def test_without_source_it_says_where_to_get_it_and_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="by hand") as caught:
        prepare(tmp_path / "ws", "yelp")
    assert caught.value.exit_code == 3
    assert "https://business.yelp.com" in str(caught.value.hint)
    assert "llmemb init yelp --source yelp_dataset.tar" in str(caught.value.hint)
    assert not (tmp_path / "ws").exists()


def test_a_folder_without_the_files_says_what_is_there_and_what_is_expected(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "in", {"yelp_academic_dataset_business.json": b"{}\n", "notes.txt": b"x"})
    with pytest.raises(WrongUseError, match=r"no file with the reviews there \(notes.txt, yelp_academic") as caught:
        prepare(tmp_path / "ws", "yelp", source=folder)
    assert "yelp_dataset.tar" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ({}, ""),
        ([], ""),
        ("True", "yes"),
        ({"WiFi": "u'free'", "GoodForMeal": {"lunch": True, "dinner": False}}, "WiFi: free, Good For Meal: lunch"),
        (["WiFi: free", "GoodForMeal: {'lunch': True, 'dinner': False}"], "WiFi: free, Good For Meal: lunch"),
        ({"Alcohol": "none", "HasTV": None, "Smoking": "u'no'", "Music": "{'dj': False}"}, ""),
        ({"NoiseLevel": "u'very_loud'", "AgesAllowed": "u'21plus'"}, "Noise Level: very loud, Ages Allowed: 21plus"),
        ({"Owner": "McDonald"}, "Owner: McDonald"),
        ({"Sign": "Tom's {open"}, "Sign: Tom's {open"),
        ({"A": {"B": {"C": "{'d': True}"}}}, "A: B: C: d"),
        ({"Payment": ["cash", "card"]}, "Payment: cash, card"),
    ],
)
def test_features_are_what_a_business_has(value: Any, text: str) -> None:
    assert features(json.loads(json.dumps(value))) == text


def test_names_of_features_are_words() -> None:
    assert [words(name) for name in ("GoodForMeal", "good_for_meal", "WiFi", "Wi-Fi", "HasTV", "PriceRange2")] == [
        *("Good For Meal", "good for meal", "WiFi", "Wi-Fi", "Has TV", "Price Range"),
    ]
    assert words("\n  Item Weight \n") == "Item Weight" and words("Open 24 Hours") == "Open 24 Hours"


def test_numbers_as_strings_and_nulls_are_understood(tmp_path: Path) -> None:
    businesses = [
        {"business_id": "b1", "name": "One", "is_open": "1", "stars": "4.5", "review_count": "7"},
        {"business_id": "b2", "name": "Two", "is_open": None, "stars": None, "hours": {"Monday": None}},
        {"business_id": 3, "name": "Three", "is_open": False},
        {"business_id": None, "name": "Nobody"},
        {"name": "No key"},
        {"business_id": "b4"},
    ]
    reviews = [
        {"user_id": "u1", "business_id": "b1", "stars": "4.0", "date": "2016-03-09"},
        {"user_id": "u1", "business_id": "b2", "stars": None, "date": "2016-03-10 00:00:00"},
        {"user_id": 7, "business_id": 3, "stars": 5, "date": "1457481600"},
        {"user_id": None, "business_id": "b1", "stars": 1, "date": "2016-03-09"},
        {"user_id": "u1", "business_id": "b1", "stars": "good", "date": "2016-03-09"},
        {"user_id": "u1", "business_id": "b1", "stars": 1, "date": None},
        {"user_id": "u1", "business_id": "b1", "stars": 1, "date": "0000-00-00"},
        {"user_id": "u1", "business_id": "b4", "stars": 1, "date": "2016-03-09"},
        {"user_id": "u1", "business_id": None, "stars": 1, "date": "2016-03-09"},
        {},
    ]
    source = write_files(
        tmp_path / "in", {"business.json": json_lines(businesses), "review.json": json_lines(reviews)}
    )
    data = prepare(tmp_path / "ws", "yelp", source=source)
    assert data.log.select("user_id", "item_id", "timestamp", "rating").rows() == [
        ("u1", "b1", at("2016-03-09"), 4.0),
        ("u1", "b2", at("2016-03-10"), None),
        ("7", "3", 1457481600, 5.0),
    ]
    assert data.items.select("item_id", "open", "stars", "review_count", "hours").rows() == [
        ("b1", "yes", "4.5", "7", None),
        ("b2", None, None, None, None),
        ("3", "no", None, None, None),
    ]
    assert {(r["file"], r["line"]): r["reason"] for r in data.rejects} == {
        ("business.json", 4): "item without an id",
        ("business.json", 5): "item without an id",
        ("business.json", 6): "item without any attribute",
        ("review.json", 4): "no user id",
        ("review.json", 5): "rating is not a number",
        ("review.json", 6): "no timestamp",
        ("review.json", 7): "timestamp is not a number or date",
        ("review.json", 8): "unknown item",
        ("review.json", 9): "no item id",
        ("review.json", 10): "no user id",
    }
    assert data.accounts_for_every_row()
