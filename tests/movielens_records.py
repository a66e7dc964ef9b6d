"""MovieLens as GroupLens ships it, edition by edition, a few lines of each."""

from __future__ import annotations

_GENRES = 19


def _flags(*on: int) -> str:
    return "|".join("1" if place in on else "0" for place in range(_GENRES))


_IMDB = "http://us.imdb.com/M/title-exact?"
ML_100K = {
    "ml-100k/u.data": b"196\t1\t3\t881250949\n186\t302\t3\t891717742\n"
    b"196\t1412\t1\t878887116\n186\t543\t5\t891717742\n",
    "ml-100k/u.item": (
        f"1|Toy Story (1995)|01-Jan-1995||{_IMDB}Toy%20Story%20(1995)|{_flags(3, 4, 5)}\n"
        f"267|unknown||||{_flags(0)}\n"
        f"302|L.A. Confidential (1997)|01-Jan-1997||{_IMDB}L%2EA%2E+Confidential+(1997)|{_flags(6, 10, 13, 16)}\n"
        f"543|Misérables, Les (1995)|01-Jan-1995||{_IMDB}Mis%E9rables%2C%20Les%20%281995%29|{_flags(8, 12)}\n"
        f"1412|Land Before Time III: The Time of the Great Giving (1995) (V)|01-Jan-1995||{_IMDB}x|{_flags(3, 4)}\n"
    ).encode("latin-1"),
    "ml-100k/u.genre": b"unknown|0\nAction|1\n\n",
    "ml-100k/u.info": b"943 users\n1682 items\n100000 ratings\n",
    "ml-100k/u.user": b"1|24|M|technician|85711\n",
    "ml-100k/u1.base": b"1\t1\t5\t874965758\n",
}

ML_1M = {
    "ml-1m/ratings.dat": b"1::1193::5::978300760\n1::73::3::978302109\n2::1193::4::978298413\n2::1::1::978298413\n",
    "ml-1m/movies.dat": (
        "1::Toy Story (1995)::Animation|Children's|Comedy\n"
        "73::Misérables, Les (1995)::Drama|Musical\n"
        "1193::One Flew Over the Cuckoo's Nest (1975)::Drama\n"
        "2::Jumanji: The: Game (1995)::Adventure|Children's|Fantasy\n"
    ).encode("latin-1"),
    "ml-1m/users.dat": b"1::F::1::10::48067\n",
    "ml-1m/README": b"SUMMARY\n",
}

_MOVIES_CSV = (
    "movieId,title,genres\n"
    "1,Toy Story (1995),Adventure|Animation|Children|Comedy|Fantasy\n"
    '11,"American President, The (1995)",Comedy|Drama|Romance\n'
    '100553,"""Great Performances"" Cats (1998)",Musical\n'
    "108583,Fawlty Towers (1975-1979),Comedy\n"
    '82684,"Trinity and Sartana Are Coming (Trinità e Sartana figli di...) (1972)",Comedy|Western\n'
    "140956,Ready Player One,Action|Sci-Fi|Thriller\n"
    "147250,The Adventures of Sherlock Holmes and Doctor Watson,(no genres listed)\n"
    "171631,Maria Bamford: Old Baby,(no genres listed)\n"
    '40697,"Babylon 5 ",Sci-Fi\n'
)
_RATINGS_CSV = (
    "userId,movieId,rating,timestamp\n"
    "1,1,4.0,964982703\n1,11,0.5,964981247\n1,100553,5.0,964982224\n"
    "2,108583,3.5,1445714835\n2,140956,3.0,1445715029\n2,147250,2.5,1445715029\n2,40697,2.0,1445715028\n"
    "2,82684,1.0,1445715027\n"
)
_OTHERS = {"links.csv": b"movieId,imdbId,tmdbId\n1,0114709,862\n", "tags.csv": b"userId,movieId,tag,timestamp\n"}


def latest(name: str, line_end: str = "\n") -> dict[str, bytes]:
    """ml-latest-small and ml-32m are written alike."""
    files = {"movies.csv": _MOVIES_CSV, "ratings.csv": _RATINGS_CSV}
    return {f"{name}/{file}": text.replace("\n", line_end).encode() for file, text in files.items()} | {
        f"{name}/{file}": content for file, content in _OTHERS.items()
    }
