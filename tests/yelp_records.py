"""Yelp's records as Yelp wrote them in every era: same keys, same types, same oddities."""

from __future__ import annotations

from tests.dataset_fixtures import json_lines

YELP_RECSYS_2013 = {
    "yelp_training_set/yelp_training_set_business.json": json_lines(
        [
            {
                "business_id": "rncjoVoEFUJGCUoC1JgnUA",
                "full_address": "8466 W Peoria Ave\nSte 6\nPeoria, AZ 85345",
                "open": True,
                "categories": ["Accountants", "Professional Services", "Tax Services"],
                "city": "Peoria",
                "review_count": 3,
                "name": "Peoria Income Tax Service",
                "neighborhoods": [],
                "longitude": -112.241596,
                "state": "AZ",
                "stars": 5.0,
                "latitude": 33.581867000000003,
                "type": "business",
            },
            {
                "business_id": "9yKzy9PApeiPPOUJEtnvkg",
                "full_address": "6106 S 32nd St\nPhoenix, AZ 85042",
                "open": False,
                "categories": ["Breakfast & Brunch", "Restaurants"],
                "city": "Phoenix",
                "review_count": 116,
                "name": "Morning Glory Café",
                "neighborhoods": ["South Mountain", "Laveen"],
                "longitude": -112.013664,
                "state": "AZ",
                "stars": 4.0,
                "latitude": 33.390780999999997,
                "type": "business",
            },
        ]
    ),
    "yelp_training_set/yelp_training_set_review.json": json_lines(
        [
            {
                "votes": {"funny": 0, "useful": 5, "cool": 2},
                "user_id": "rLtl8ZkDX5vH5nAx9C3q5Q",
                "review_id": "fWKvX83p0-ka4JS3dc6E5A",
                "stars": 5,
                "date": "2011-01-26",
                "text": "My wife took me here on my birthday.\n\nDo yourself a favor.",
                "type": "review",
                "business_id": "9yKzy9PApeiPPOUJEtnvkg",
            },
            {
                "votes": {"funny": 0, "useful": 0, "cool": 0},
                "user_id": "0a2KyEL0d3Yb1V6aivbIuQ",
                "review_id": "IjZ33sJrzXqU-0X6U8NwyA",
                "stars": 2,
                "date": "2010-12-31",
                "text": "",
                "type": "review",
                "business_id": "rncjoVoEFUJGCUoC1JgnUA",
            },
            {
                "votes": {"funny": 1, "useful": 1, "cool": 0},
                "user_id": "rLtl8ZkDX5vH5nAx9C3q5Q",
                "review_id": "6oRAC4uyJCsJl1X0WZpVSA",
                "stars": 4,
                "date": "2009-05-03",
                "text": '{"not": "a record"}',
                "type": "review",
                "business_id": "rncjoVoEFUJGCUoC1JgnUA",
            },
        ]
    ),
    "yelp_training_set/yelp_training_set_user.json": json_lines(
        [{"votes": {"funny": 0, "useful": 7, "cool": 0}, "user_id": "CR2y7yEm4X035ZMzrTtN9Q", "name": "Jim"}]
    ),
    "yelp_training_set/yelp_training_set_checkin.json": json_lines(
        [{"checkin_info": {"11-3": 17}, "type": "checkin", "business_id": "KO9CpaSPOoqm0iCWm5scmg"}]
    ),
    "yelp_test_set/yelp_test_set_business.json": json_lines([{"business_id": "not-this-one", "name": "Test"}]),
    "yelp_test_set/yelp_test_set_review.json": json_lines([{"user_id": "u", "business_id": "not-this-one"}]),
    "__MACOSX/yelp_training_set/._yelp_training_set_review.json": b"\x00\x05\x16\x07\x00\x02",
}

YELP_2015 = {
    "yelp_academic_dataset_business.json": json_lines(
        [
            {
                "business_id": "vcNAWiLM4dR7D2nwwJ7nCA",
                "full_address": "4840 E Indian School Rd\nSte 101\nPhoenix, AZ 85018",
                "hours": {
                    "Tuesday": {"close": "17:00", "open": "08:00"},
                    "Friday": {"close": "17:00", "open": "08:00"},
                },
                "open": True,
                "categories": ["Doctors", "Health & Medical"],
                "city": "Phoenix",
                "review_count": 9,
                "name": "Eric Goldberg, MD",
                "neighborhoods": [],
                "longitude": -111.983758,
                "state": "AZ",
                "stars": 3.5,
                "latitude": 33.499313000000001,
                "attributes": {"By Appointment Only": True},
                "type": "business",
            },
            {
                "business_id": "JwUE5GmEO-sH1FuwJgKBlQ",
                "full_address": "6162 US Highway 51\nDe Forest, WI 53532",
                "hours": {},
                "open": True,
                "categories": ["Restaurants"],
                "city": "De Forest",
                "review_count": 26,
                "name": "Pine Cone Restaurant",
                "neighborhoods": ["North Side"],
                "longitude": -89.335843999999994,
                "state": "WI",
                "stars": 4.0,
                "latitude": 43.238892999999997,
                "attributes": {
                    "Take-out": True,
                    "Good For": {"dessert": False, "latenight": False, "lunch": True, "breakfast": True},
                    "Caters": False,
                    "Noise Level": "average",
                    "Ambience": {"romantic": False, "casual": False},
                    "Wi-Fi": "no",
                    "Attire": "casual",
                    "Alcohol": "full_bar",
                    "Accepts Credit Cards": {},
                    "Price Range": 1,
                },
                "type": "business",
            },
        ]
    ),
    "yelp_academic_dataset_review.json": json_lines(
        [
            {
                "votes": {"funny": 0, "useful": 2, "cool": 1},
                "user_id": "Xqd0DzHaiyRqVH3WRG7hzg",
                "review_id": "15SdjuK7DmYqUAj6rjGowg",
                "stars": 5,
                "date": "2007-05-17",
                "text": "dr. goldberg offers everything i look for in a general practitioner.",
                "type": "review",
                "business_id": "vcNAWiLM4dR7D2nwwJ7nCA",
            },
            {
                "votes": {"funny": 0, "useful": 2, "cool": 0},
                "user_id": "Xqd0DzHaiyRqVH3WRG7hzg",
                "review_id": "RF6UnRTtG7tWMcrO2GEoAg",
                "stars": 2,
                "date": "2010-03-22",
                "text": "Unfortunately, the frustration of being a patient is a repeat.",
                "type": "review",
                "business_id": "JwUE5GmEO-sH1FuwJgKBlQ",
            },
        ]
    ),
    "yelp_academic_dataset_tip.json": json_lines([{"user_id": "trdsekNRD-gIs50EBrScwA", "text": "Nice", "likes": 0}]),
}

YELP_EARLY_2017 = {
    "yelp_academic_dataset_business.json": json_lines(
        [
            {
                "business_id": "0DI8Dt2PJp07XkVvIElIcQ",
                "name": "Innovative Vapors",
                "neighborhood": "",
                "address": "227 E Baseline Rd, Ste J2",
                "city": "Tempe",
                "state": "AZ",
                "postal_code": "85283",
                "latitude": 33.3782141,
                "longitude": -111.936102,
                "stars": 4.5,
                "review_count": 17,
                "is_open": 0,
                "attributes": [
                    "BikeParking: True",
                    "BusinessAcceptsBitcoin: False",
                    "BusinessParking: {'garage': False, 'street': False, 'validated': False, 'lot': True}",
                    "RestaurantsPriceRange2: 2",
                ],
                "categories": ["Tobacco Shops", "Nightlife"],
                "hours": ["Monday 11:0-21:0", "Sunday 11:0-18:0"],
                "type": "business",
            },
            {
                "business_id": "LTlCaCGZE14GuaUXUGbamg",
                "name": "Cut and Taste",
                "neighborhood": "Downtown",
                "address": "495 S Grand Central Pkwy",
                "city": "Las Vegas",
                "state": "NV",
                "postal_code": "89106",
                "latitude": 36.1922840,
                "longitude": -115.1592718,
                "stars": 5.0,
                "review_count": 9,
                "is_open": 1,
                "attributes": None,
                "categories": None,
                "hours": None,
                "type": "business",
            },
        ]
    ),
    "yelp_academic_dataset_review.json": json_lines(
        [
            {
                "review_id": "NxL8SIC5yqOdnlXCg18IBg",
                "user_id": "KpkOkG6RIf4Ra25Lhhxf1A",
                "business_id": "LTlCaCGZE14GuaUXUGbamg",
                "stars": 5,
                "date": "2011-10-10",
                "text": "If you enjoy service by someone who is as competent as he is personable.",
                "useful": 0,
                "funny": 0,
                "cool": 0,
                "type": "review",
            },
            {
                "review_id": "pXbbIgOXvLuTi_SPs1hQEQ",
                "user_id": "KpkOkG6RIf4Ra25Lhhxf1A",
                "business_id": "0DI8Dt2PJp07XkVvIElIcQ",
                "stars": 4,
                "date": "2011-10-09",
                "text": "Vapes.",
                "useful": 1,
                "funny": 0,
                "cool": 0,
                "type": "review",
            },
        ]
    ),
}

YELP_LATE_2017 = {
    "dataset/business.json": json_lines(
        [
            {
                "business_id": "YDf95gJZaq05wvo7hTQbbQ",
                "name": "Richmond Town Square",
                "neighborhood": "",
                "address": "691 Richmond Rd",
                "city": "Richmond Heights",
                "state": "OH",
                "postal_code": "44143",
                "latitude": 41.5417162,
                "longitude": -81.4931165,
                "stars": 2.0,
                "review_count": 17,
                "is_open": 1,
                "attributes": {
                    "RestaurantsPriceRange2": 2,
                    "BusinessParking": {"garage": False, "street": False, "validated": False, "lot": True},
                    "BikeParking": True,
                    "WheelchairAccessible": True,
                },
                "categories": ["Shopping", "Shopping Centers"],
                "hours": {"Monday": "10:00-21:00", "Sunday": "11:00-18:00"},
            },
        ]
    ),
    "dataset/review.json": json_lines(
        [
            {
                "review_id": "VfBHSwC5Vz_pbFluy07i9Q",
                "user_id": "cjpdDjZyprfyDG3RlkVG3w",
                "business_id": "YDf95gJZaq05wvo7hTQbbQ",
                "stars": 5,
                "date": "2016-07-12",
                "text": "My girlfriend and I stayed here for 3 nights and loved it.",
                "useful": 0,
                "funny": 0,
                "cool": 0,
            },
        ]
    ),
    "dataset/photos.json": json_lines([{"photo_id": "soK1szeyan202jnsGhUDmA", "caption": "", "label": "inside"}]),
}

YELP_2020 = {
    "yelp_academic_dataset_business.json": json_lines(
        [
            {
                "business_id": "f9NumwFMBDn751xgFiRbNA",
                "name": "The Range At Lake Norman",
                "address": "10913 Bailey Rd",
                "city": "Cornelius",
                "state": "NC",
                "postal_code": "28031",
                "latitude": 35.4627242,
                "longitude": -80.8526119,
                "stars": 3.5,
                "review_count": 36,
                "is_open": 1,
                "attributes": {
                    "BusinessAcceptsCreditCards": "True",
                    "BikeParking": "True",
                    "GoodForKids": "False",
                    "BusinessParking": "{'garage': False, 'street': False, 'validated': False, 'lot': True}",
                    "ByAppointmentOnly": "False",
                    "RestaurantsPriceRange2": "3",
                    "WiFi": "u'free'",
                    "Alcohol": "u'beer_and_wine'",
                    "NoiseLevel": "'average'",
                    "RestaurantsAttire": "u'none'",
                    "Ambience": "{u'romantic': False, u'touristy': None, u'hipster': True, 'casual': True}",
                    "Music": "None",
                    "BestNights": "{}",
                    "HasTV": "True",
                },
                "categories": "Active Life, Gun/Rifle Ranges, Guns & Ammo, Shopping",
                "hours": {"Monday": "10:0-18:0", "Tuesday": "8:0-18:30"},
            },
            {
                "business_id": "Yzvjg0SayhoZgCljUJRF9Q",
                "name": "Carlos Santo, NMD",
                "address": "",
                "city": "Scottsdale",
                "state": "AZ",
                "postal_code": "85258",
                "latitude": 33.5694041,
                "longitude": -111.8902637,
                "stars": 5.0,
                "review_count": 4,
                "is_open": 0,
                "attributes": None,
                "categories": None,
                "hours": None,
            },
        ]
    ),
    "yelp_academic_dataset_review.json": json_lines(
        [
            {
                "review_id": "lWC-xP3rd6obsecCYsGZRg",
                "user_id": "ak0TdVmGKo4pwqdJSTLwWw",
                "business_id": "f9NumwFMBDn751xgFiRbNA",
                "stars": 4.0,
                "useful": 3,
                "funny": 1,
                "cool": 1,
                "text": 'Apparently Prides Osteria had a rough summer. "Best" pizza, \\o/ 😀',
                "date": "2014-10-11 03:34:02",
            },
            {
                "review_id": "8bFej1QE5LXp4O05qjGqXA",
                "user_id": "ak0TdVmGKo4pwqdJSTLwWw",
                "business_id": "Yzvjg0SayhoZgCljUJRF9Q",
                "stars": 1.0,
                "useful": 0,
                "funny": 0,
                "cool": 0,
                "text": "This store is pretty good.",
                "date": "2016-03-09 00:00:00",
            },
            {
                "review_id": "NDhkzczKjLshODbqDoNLSg",
                "user_id": "eC5evKn1TWDyHCyQAwguUw",
                "business_id": "f9NumwFMBDn751xgFiRbNA",
                "stars": 3.0,
                "useful": 0,
                "funny": 0,
                "cool": 0,
                "text": "",
                "date": "2015-07-03 20:38:25",
            },
        ]
    ),
    "yelp_academic_dataset_user.json": json_lines([{"user_id": "ntlvfPzc8eglqvk92iDIAw", "name": "Rafael"}]),
    "Dataset_User_Agreement.pdf": b"%PDF-1.4 not read",
}
