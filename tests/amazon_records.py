"""Amazon reviews and metadata as the three editions write them: same keys, same types, same oddities."""

from __future__ import annotations

import gzip
import json

from tests.dataset_fixtures import json_lines, python_lines

REVIEWS_2014 = [
    {
        "reviewerID": "A1YJEY40YUW4SE",
        "asin": "7806397051",
        "reviewerName": "Andrea",
        "helpful": [3, 4],
        "reviewText": 'Very oily and creamy. Not at all what I expected... it\'s "ok"',
        "overall": 1.0,
        "summary": "Don't waste your money",
        "unixReviewTime": 1391040000,
        "reviewTime": "01 30, 2014",
    },
    {
        "reviewerID": "A60XNB876KYML",
        "asin": "7806397051",
        "helpful": [1, 1],
        "reviewText": "",
        "overall": 3.0,
        "summary": "OK Palette!",
        "unixReviewTime": 1397779200,
        "reviewTime": "04 18, 2014",
    },
    {
        "reviewerID": "A1YJEY40YUW4SE",
        "asin": "B00004TMFE",
        "helpful": [0, 0],
        "reviewText": "Fine.",
        "overall": 5.0,
        "summary": "Five",
        "unixReviewTime": 1378425600,
        "reviewTime": "09 6, 2013",
    },
]
METADATA_2014 = [
    {
        "asin": "7806397051",
        "description": 'WAWO 15 Color Professionl Makeup Eyeshadow &amp; Camouflage<br />Palette it\'s "new"',
        "title": "WAWO 15 Color Professionl Makeup Eyeshadow Camouflage Facial Concealer Neutral Palette",
        "price": 3.17,
        "imUrl": "http://ecx.images-amazon.com/images/I/51fAmVkTbyL._SY300_.jpg",
        "related": {"also_bought": ["B00JHONN1S", "B002BZX8Z6"], "buy_after_viewing": ["B00D2K1M3O"]},
        "salesRank": {"Beauty": 211836},
        "brand": "Wawo",
        "categories": [
            ["Beauty", "Makeup", "Face", "Concealers & Neutralizers"],
            ["Beauty", "Tools & Accessories"],
        ],
    },
    {
        "asin": "B00004TMFE",
        "title": "Philips Norelco\tShaver — été",
        "price": 12.0,
        "salesRank": {},
        "brand": "",
        "categories": [["Beauty"]],
    },
    {"asin": "B0000NOBODY", "categories": [["Beauty"]]},
]
# Some lines came from Python 2, with its u'' texts.
LINE_2014_U = (
    b"{u'asin': u'B0000UUUUU', u'title': u'Caf\\xe9 cr\\xe8me', u'categories': [[u'Beauty', u'Skin Care']]}\n"
)
BEAUTY_2014 = {
    "reviews_Beauty.json.gz": gzip.compress(json_lines(REVIEWS_2014)),
    "meta_Beauty.json.gz": gzip.compress(python_lines(METADATA_2014) + LINE_2014_U),
}

REVIEWS_2018 = [
    {
        "overall": 5.0,
        "vote": "2",
        "verified": True,
        "reviewTime": "05 1, 2017",
        "reviewerID": "A5ET5U2P2TJGO",
        "asin": "B0000Y3NO6",
        "style": {"Size:": " Large", "Color:": " Charcoal"},
        "reviewerName": "Abbey",
        "reviewText": "I now have 4 of the 5 available colors of this shirt... ",
        "summary": "Comfy, flattering, discreet--highly recommended!",
        "unixReviewTime": 1493596800,
    },
    {
        "overall": 2.0,
        "verified": False,
        "reviewTime": "01 1, 2018",
        "reviewerID": "A5ET5U2P2TJGO",
        "asin": "B00N31IGPO",
        "reviewerName": "Abbey",
        "unixReviewTime": 1514764800,
        "image": ["https://images-na.ssl-images-amazon.com/images/I/71eG75FTJJL._SY88.jpg"],
    },
]
METADATA_2018 = [
    {
        "category": [],
        "tech1": "",
        "description": ["Soap <b>with a bowl</b>.", "Smells of &quot;wood&quot;."],
        "fit": "",
        "title": "Shave Soap &amp; Bowl",
        "also_buy": ["B0186FLPUE", "B00RORUNQI"],
        "tech2": "",
        "brand": "Truefitt &amp; Hill",
        "feature": ["3.5 ounces", "In a bowl"],
        "rank": "186,829 in Beauty &amp; Personal Care (",
        "also_view": [],
        "details": {
            "\n    Product Dimensions: \n    ": "2.2 x 2.2 x 3.1 inches ; 1.76 ounces",
            "Shipping Weight:": "6.4 ounces (",
            "ASIN:": "B0000Y3NO6",
            "Date first listed on Amazon:": "May 1, 2003",
            "\n    Amazon Best Sellers Rank: \n    ": "#12 in Beauty",
        },
        "main_cat": '<img src="https://images-na.ssl-images-amazon.com/x.png" alt="AMAZON FASHION"/>',
        "similar_item": "",
        "date": "June 12, 2014",
        "price": "$85.00",
        "asin": "B0000Y3NO6",
        "imageURL": ["https://images-na.ssl-images-amazon.com/images/I/41sTOlcsmjL._SX50_.jpg"],
    },
    {
        "category": ["Clothing, Shoes & Jewelry", "Women", "Dresses"],
        "description": [],
        "title": "var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();",
        "also_buy": [],
        "brand": "Speed Dealer Customs",
        "feature": ["<style>.a-box{color:red}</style>100% cotton"],
        "rank": [">#2,242,653 in Clothing", ">#99 in Dresses"],
        "also_view": ["B00658TPYI"],
        "details": {},
        "main_cat": "Amazon Fashion",
        "date": "",
        "price": ".a-box-inner{background-color:#fff}#alohaBuyBoxWidget .selected{display:block}",
        "asin": "B00N31IGPO",
    },
]
FASHION_2018 = {
    "AMAZON_FASHION.json.gz": gzip.compress(json_lines(REVIEWS_2018)),
    # The edition repeats products.
    "meta_AMAZON_FASHION.json.gz": gzip.compress(json_lines([*METADATA_2018, METADATA_2018[0]])),
}

REVIEWS_2023 = [
    {
        "rating": 5.0,
        "title": "Such a lovely scent but not overpowering.",
        "text": "This spray is really nice.<br />It smells really good, goes on really fine.",
        "images": [],
        "asin": "B00YQ6X8E1",
        "parent_asin": "B00YQ6X8EO",
        "user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ",
        "timestamp": 1588687728923,
        "helpful_vote": 0,
        "verified_purchase": True,
    },
    {
        "rating": 4.0,
        "title": "Works great",
        "text": "",
        "images": [{"small_image_url": "https://m.media-amazon.com/images/I/81.jpg", "attachment_type": "IMAGE"}],
        "asin": "B081TJ8YS3",
        "parent_asin": "B081TJ8YS3",
        "user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ",
        "timestamp": 1588615855070,
        "helpful_vote": 1,
        "verified_purchase": False,
    },
    {
        "rating": 1.0,
        "title": "No",
        "text": "No",
        "images": [],
        "asin": "B097R46CSY",
        "parent_asin": "B097R46CSY",
        "user_id": "AE74DYR3QUGVPZJ3P7RFWBGIX7XQ",
        "timestamp": 1589665266052,
        "helpful_vote": 2,
        "verified_purchase": True,
    },
]
METADATA_2023 = [
    {
        "main_category": "All Beauty",
        "title": "Howard LC0008 Leather Conditioner, 8-Ounce (4-Pack)",
        "average_rating": 4.8,
        "rating_number": 10,
        "features": [],
        "description": [],
        "price": None,
        "images": [{"thumb": "https://m.media-amazon.com/images/I/41.jpg", "variant": "MAIN", "hi_res": None}],
        "videos": [],
        "store": "Howard Products",
        "categories": [],
        "details": {"Package Dimensions": "7.1 x 5.5 x 3 inches; 2.38 Pounds", "UPC": "617390882781"},
        "parent_asin": "B00YQ6X8EO",
        "bought_together": None,
    },
    {
        "main_category": "All Beauty",
        "title": "Yes to Tomatoes Detoxifying Charcoal Cleanser (Pack of 2)",
        "average_rating": 4.5,
        "rating_number": 3,
        "features": ["Cleans", "Detoxifies"],
        "description": ["From the tomato", ""],
        "price": "—",
        "images": [],
        "videos": [],
        "store": None,
        "categories": ["Beauty & Personal Care", "Skin Care"],
        "details": json.dumps(
            {
                "Item Form": "Powder",
                "Skin Type": "Acne Prone",
                "Best Sellers Rank": {"Beauty & Personal Care": 22345, "Face Wash": 12},
                "Customer Reviews": {"ratings_count": 3, "stars": "4.5 out of 5 stars"},
                "Date First Available": "May 5, 2014",
                "Is Discontinued By Manufacturer": "No",
            }
        ),
        "parent_asin": "B081TJ8YS3",
        "bought_together": None,
    },
    {
        "main_category": "All Beauty",
        "title": "Eye Patch Black Adult with Tie Band (6 Per Pack)",
        "average_rating": 4.1,
        "rating_number": 2000,
        "features": [],
        "description": [],
        "price": 12.99,
        "images": [],
        "videos": [],
        "store": "Levine Health Products",
        "categories": [],
        "details": {},
        "parent_asin": "B097R46CSY",
        "bought_together": None,
    },
]
ALL_BEAUTY_2023 = {
    "All_Beauty.jsonl.gz": gzip.compress(json_lines(REVIEWS_2023)),
    "meta_All_Beauty.jsonl.gz": gzip.compress(json_lines(METADATA_2023)),
}
