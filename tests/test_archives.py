"""Archives: read where they are, bounded, and never trusted with a path."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmemb_cli.datasets.readers import streams
from llmemb_cli.datasets.readers.sources import find_files, plain_file
from llmemb_cli.datasets.readers.streams import RawFile
from llmemb_cli.errors import BadDataError, LlmembError, WrongUseError
from tests.dataset_fixtures import prepare, tar_of, write_files, zip_of
from tests.yelp_records import YELP_2020

ROLES = {"first": r"first\.txt(\.gz)?", "second": r"second\.txt(\.gz)?"}
FORMS = {
    "tar": tar_of,
    "tgz": lambda files: tar_of(files, "gz"),
    "tar.xz": lambda files: tar_of(files, "xz"),
    "tar.bz2": lambda files: tar_of(files, "bz2"),
    "zip": zip_of,
    "tar.zip": lambda files: zip_of({"Yelp JSON/in.tar": tar_of(files)}),
    "tgz.zip": lambda files: zip_of({"in.tgz": tar_of(files, "gz")}),
    "bz2.zip": lambda files: zip_of({"in.TAR.BZ2": tar_of(files, "bz2")}),
}


def look(source: Path) -> dict[str, RawFile]:
    return find_files(source, ROLES, expected="first.txt and second.txt")


def contents(source: Path) -> dict[str, bytes]:
    found = {}
    for role, file in look(source).items():
        with file.open() as stream:
            found[role] = stream.read()
    return found


def drain(file: RawFile) -> int:
    """How much a file unpacks to."""
    with file.open() as stream:
        return sum(len(block) for block in iter(lambda: stream.read(1 << 20), b""))


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


PLAIN = {"a/first.txt": b"one\n" * 1000, "b/second.txt": b"\x00two \xff", "other.bin": b"x"}


@given(
    form=st.sampled_from(list(FORMS)),
    first=st.binary(max_size=200),
    second=st.binary(max_size=200),
    folders=st.lists(st.sampled_from(["", "a/", "./", "a b/c/"]), min_size=2, max_size=2),
    packed=st.booleans(),
    others=st.dictionaries(
        st.sampled_from(["z.txt", "first.txt.bak", "__MACOSX/._first.txt", "._second.txt"]), st.binary()
    ),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=80, deadline=None)
def test_archives_of_every_kind_give_what_the_plain_files_give(
    tmp_path_factory: pytest.TempPathFactory,
    form: str,
    first: bytes,
    second: bytes,
    folders: list[str],
    packed: bool,
    others: dict[str, bytes],
    order: object,
) -> None:
    # Content that looks packed is unpacked, wherever it lies; this is about content that does not.
    first, second = b"." + first, b"." + second
    files = {
        f"{folders[0]}first.txt" + ".gz" * packed: gzip.compress(first) if packed else first,
        f"{folders[1]}second.txt": second,
        **others,
    }
    names = list(files)
    order.shuffle(names)  # type: ignore[attr-defined]
    source = tmp_path_factory.mktemp("archive") / f"in.{form}"
    source.write_bytes(FORMS[form]({name: files[name] for name in names}))
    assert contents(source) == {"first": first, "second": second}
    assert {file.path for file in look(source).values()} == {source}
    assert everything(source.parent) == [source.name]


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress])
def test_packed_files_are_known_by_their_first_bytes(tmp_path: Path, pack: object) -> None:
    folder = write_files(tmp_path / "in", {"first.txt": pack(b"one"), "second.txt": b"two"})  # type: ignore[operator]
    assert contents(folder) == {"first": b"one", "second": b"two"}


@pytest.mark.parametrize("form", FORMS)
def test_a_cut_archive_never_passes_for_a_whole_one(tmp_path: Path, form: str) -> None:
    whole = FORMS[form](PLAIN)
    source = tmp_path / f"in.{form}"
    expected = {"first": PLAIN["a/first.txt"], "second": PLAIN["b/second.txt"]}
    outcomes = set()
    for length in [*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1]:
        source.write_bytes(whole[:length])
        try:
            assert contents(source) == expected
            outcomes.add("whole")
        except LlmembError as error:
            assert str(source) in str(error.where)
            outcomes.add(type(error).__name__)
    assert "BadDataError" in outcomes


@pytest.mark.parametrize("form", ["tgz", "tar.xz", "zip", "tgz.zip"])
def test_a_damaged_archive_never_gives_other_content(tmp_path: Path, form: str) -> None:
    whole = FORMS[form](PLAIN)
    source = tmp_path / f"in.{form}"
    expected = {"first": PLAIN["a/first.txt"], "second": PLAIN["b/second.txt"]}
    for place in range(0, len(whole), max(1, len(whole) // 80)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        source.write_bytes(damaged)
        try:
            got = contents(source)
        except LlmembError:
            continue
        # A name or a date may have changed, or a folder; never the content.
        assert got == expected


@pytest.mark.parametrize("form", ["tar", "tar.zip"])
def test_damaged_headers_are_told_and_never_a_traceback(tmp_path: Path, form: str) -> None:
    whole = FORMS[form](PLAIN)
    source = tmp_path / f"in.{form}"
    for place in range(0, min(len(whole), 1024), 2):
        damaged = bytearray(whole)
        damaged[place] ^= 0x35
        source.write_bytes(damaged)
        try:
            assert set(contents(source)) == {"first", "second"}
        except LlmembError as error:
            assert str(source) in str(error.where)


OUTSIDE = [
    "../first.txt",
    "/etc/first.txt",
    "a/../../first.txt",
    "C:\\first.txt",
    "..\\first.txt",
    "\\\\host\\first.txt",
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("form", ["tar", "tgz", "zip", "tar.zip"])
def test_a_member_that_points_outside_is_refused_and_nothing_is_written(tmp_path: Path, form: str, name: str) -> None:
    inside = tmp_path / "deep" / "er"
    inside.mkdir(parents=True)
    source = inside / f"in.{form}"
    source.write_bytes(FORMS[form]({name: b"bad", "second.txt": b"two"}))
    before = everything(tmp_path)
    with pytest.raises(BadDataError, match="points outside its folder") as caught:
        look(source)
    assert "do not trust" in str(caught.value.hint) and everything(tmp_path) == before


def test_links_devices_and_sparse_members_are_passed_over(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        with tarfile.open(tmp_path / "in.tar", "w") as archive:
            link = tarfile.TarInfo("first.txt")
            link.type, link.linkname = kind, str(secret)
            archive.addfile(link)
            member = tarfile.TarInfo("second.txt")
            member.size = 3
            archive.addfile(member, io.BytesIO(b"two"))
        with pytest.raises(WrongUseError, match=r"no file with the first there \(second.txt\)"):
            look(tmp_path / "in.tar")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        info = zipfile.ZipInfo("first.txt")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, str(secret))
        archive.writestr("second.txt", "two")
    with pytest.raises(WrongUseError, match="no file with the first"):
        look(tmp_path / "in.zip")


def sparse_tar(size: int) -> bytes:
    """A tar whose only member has one byte and `size` zeros, in GNU's sparse form."""
    header = bytearray(tarfile.TarInfo("first.txt").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"%011o\x00" % 512
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:398] = b"%011o\x00" % (size - 1)
    header[398:410] = b"%011o\x00" % 1
    header[483:495] = b"%011o\x00" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\x00 " % sum(header)
    return bytes(header) + b"x" + bytes(511)


def test_a_sparse_member_does_not_become_its_zeros(tmp_path: Path) -> None:
    raw = sparse_tar(1 << 32) + tar_of({"second.txt": b"two"})
    (tmp_path / "in.tar").write_bytes(raw)
    with tarfile.open(tmp_path / "in.tar") as archive:
        assert archive.getmembers()[0].issparse() and archive.getmembers()[0].size == 1 << 32
    with pytest.raises(WrongUseError, match="no file with the first"):
        look(tmp_path / "in.tar")


def test_sparse_members_with_a_long_map_are_passed_over(tmp_path: Path) -> None:
    # GNU's old form, with two more blocks of the map before the content; and that of PAX, with it in the content.
    old = bytearray(sparse_tar(1 << 32))
    old[482] = 1
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\x00 " % sum(old[:512])
    blocks = (b"%011o\x00" % 512 * 42).ljust(504, b"\x00")[:504]
    more = blocks + b"\x01" + bytes(7) + blocks + bytes(8)
    new = io.BytesIO()
    with tarfile.open(fileobj=new, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("first.txt")
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "4294967296"}
        content = b"9999999999\n" + b"1\n" * 2000
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
        members = new.getvalue()  # without the blocks that end an archive
    for raw in (bytes(old[:512]) + more + bytes(old[512:]), members):
        (tmp_path / "in.tar").write_bytes(raw + tar_of({"second.txt": b"two"}))
        with pytest.raises(WrongUseError, match=r"no file with the first there \(second.txt\)"):
            look(tmp_path / "in.tar")


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def pax_record(size: int) -> bytes:
    """One record of `size` bytes."""
    start = b"%d k=" % size
    return start + b"v" * (size - len(start) - 1) + b"\n"


LONG = 20 << 20
HEADERS = {
    "one": header(tarfile.XHDTYPE, LONG) + pax_record(LONG),
    "of all": header(tarfile.XGLTYPE, LONG) + pax_record(LONG),
    "name": header(tarfile.GNUTYPE_LONGNAME, LONG) + b"n" * LONG,
    "link": header(tarfile.GNUTYPE_LONGLINK, LONG) + b"n" * LONG,
    "in a row": (header(tarfile.XHDTYPE, 1 << 19) + pax_record(1 << 19)) * 40,
    "small ones in a row": (header(tarfile.XHDTYPE, 512) + pax_record(512)) * 2000,
    "of all, between members": (header(tarfile.XGLTYPE, 1 << 19) + pax_record(1 << 19) + header(b"0", 0)) * 40,
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("member_first", [False, True])
def test_headers_take_no_more_memory_than_a_header_needs(tmp_path: Path, name: str, member_first: bool) -> None:
    before = header(b"0", 0, "first.txt") if member_first else b""
    source = tmp_path / "in.tgz"
    source.write_bytes(gzip.compress(before + HEADERS[name] + tar_of({"second.txt": b"two"}), 6))
    tracemalloc.start()
    try:
        with pytest.raises(BadDataError, match="headers of more than 1 MiB") as caught:
            look(source)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.where == str(source) and peak < 16 << 20


def test_members_with_long_headers_are_read_and_not_kept(tmp_path: Path) -> None:
    long = "d" * 300
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in [f"{long}/{n}.bin" for n in range(40)] + [f"{long}/first.txt", "second.txt"]:
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = 3, {"SCHILY.xattr.user.x": "v" * 500_000}
            archive.addfile(member, io.BytesIO(b"two"))
    (tmp_path / "in.tar").write_bytes(target.getvalue())
    tracemalloc.start()
    try:
        found = look(tmp_path / "in.tar")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found["first"].open().read() == b"two" and peak < 12 << 20


def bomb(megabytes: int) -> bytes:
    target = io.BytesIO()
    with gzip.GzipFile(fileobj=target, mode="wb", compresslevel=9) as file:
        for _ in range(megabytes):
            file.write(b"\n" * (1 << 20))
    return target.getvalue()


BOMB = bomb(80)
BOMBS = {
    "first.txt": BOMB,
    "in.tgz": gzip.compress(tar_of({"first.txt": bytes(80 << 20), "second.txt": b""}), 9),
    "in.tar": tar_of({"first.txt.gz": BOMB, "second.txt": b"two"}),
    "in.zip": zip_of({"first.txt": bytes(80 << 20), "second.txt": b"two"}),
    "packed.zip": zip_of({"first.txt.gz": BOMB, "second.txt": b"two"}),
    "tgz.zip": zip_of({"in.tgz": tar_of({"first.txt": bytes(80 << 20), "second.txt": b""}, "gz")}),
    "twice.zip": zip_of({"in.tgz": gzip.compress(tar_of({"first.txt.gz": BOMB, "second.txt": b"two"}))}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_once_they_are_out_of_proportion(tmp_path: Path, name: str) -> None:
    folder = write_files(tmp_path / "in", {name: BOMBS[name], "second.txt": b"two"})
    with pytest.raises(BadDataError, match="unpacks to more than 200 times its size") as caught:
        drain(look(folder / name)["first"])
    assert name in str(caught.value.where) and "unpack it yourself" in str(caught.value.hint)


def test_a_bomb_is_stopped_early_and_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RATIO_FROM", 4 << 20)
    file = plain_file(write_files(tmp_path / "in", {"first.txt": BOMB}) / "first.txt")
    done = 0
    with pytest.raises(BadDataError, match="200 times"), file.open() as stream:
        while block := stream.read(1 << 20):
            done += len(block)
    assert done <= 5 << 20
    monkeypatch.setattr(streams, "MAX_RATIO", 10_000)
    assert drain(file) == 80 << 20
    monkeypatch.setattr(streams, "MAX_UNPACKED", 20 << 20)
    with pytest.raises(BadDataError, match="disk"):
        drain(file)


def test_a_zip_that_lies_of_its_packed_size_is_refused(tmp_path: Path) -> None:
    raw = bytearray(zip_of({"first.txt": bytes(80 << 20), "second.txt": b"two"}))
    central = raw.index(b"PK\x01\x02")
    raw[central + 20 : central + 24] = (1 << 30).to_bytes(4, "little")
    (tmp_path / "in.zip").write_bytes(raw)
    with pytest.raises(BadDataError, match=r"200 times|damaged"):
        drain(look(tmp_path / "in.zip")["first"])


def test_dense_text_of_any_size_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RATIO_FROM", 1 << 16)
    text = b'{"user_id": "ak0TdVmGKo4pwqdJSTLwWw", "business_id": "f9NumwFMBDn751xgFiRbNA", "stars": 4.0}\n' * 5000
    folder = write_files(tmp_path / "in", {"first.txt": gzip.compress(text, 1), "second.txt": os.urandom(1 << 20)})
    assert drain(look(folder)["first"]) == len(text)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [(8, b"\x01", "encrypted"), (10, b"\x63", "compression"), (0, b"XX", "damaged or cut off")],
)
def test_a_member_that_cannot_be_unpacked_says_why(tmp_path: Path, offset: int, value: bytes, message: str) -> None:
    raw = bytearray(zip_of({"first.txt": b"one" * 100, "second.txt": b"two"}))
    central, local = raw.index(b"PK\x01\x02"), 0
    raw[central + offset : central + offset + len(value)] = value
    if offset:
        raw[local + offset - 2 : local + offset - 2 + len(value)] = value
    (tmp_path / "in.zip").write_bytes(raw)
    with pytest.raises(BadDataError, match=message) as caught:
        contents(tmp_path / "in.zip")
    assert "in.zip" in str(caught.value.where)


def test_names_from_an_archive_are_fit_for_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "in.tar").write_bytes(tar_of({"\x1b[31mred\x07.txt": b"", "second.txt": b""}))
    with pytest.raises(WrongUseError) as caught:
        look(tmp_path / "in.tar")
    assert caught.value.message.isprintable() and "?[31mred?.txt" in caught.value.message


@pytest.mark.parametrize("name", ["in.zip", "in.tar", "in.tgz", "in.tar.gz"])
def test_what_only_has_an_archive_s_name_is_told(tmp_path: Path, name: str) -> None:
    folder = write_files(
        tmp_path / "in", {name: b"PK\x03\x04 no archive at all", "first.txt": b"", "second.txt": b""}
    )
    with pytest.raises(BadDataError, match="damaged or cut off") as caught:
        look(folder / name)
    assert "get it again" in str(caught.value.hint)


def test_several_candidates_and_empty_archives_are_told(tmp_path: Path) -> None:
    (tmp_path / "in.zip").write_bytes(zip_of({"a/first.txt": b"1", "b/FIRST.txt": b"2", "second.txt": b""}))
    with pytest.raises(WrongUseError, match=r"several files could be the first: first.txt, FIRST.txt"):
        look(tmp_path / "in.zip")
    for empty in (zip_of({}), tar_of({})):
        (tmp_path / "empty").write_bytes(empty)
        with pytest.raises(WrongUseError, match=r"there \(nothing\)"):
            look(tmp_path / "empty")


@pytest.mark.parametrize("form", ["tar", "tgz", "zip", "tar.zip"])
def test_a_bad_archive_leaves_no_workspace(tmp_path: Path, form: str) -> None:
    source = tmp_path / f"yelp.{form}"
    whole = FORMS[form]({name: content * 50 if "review" in name else content for name, content in YELP_2020.items()})
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LlmembError) as caught:
        prepare(tmp_path / "ws", "yelp", source=source)
    assert caught.value.exit_code in (2, 4) and everything(tmp_path) == [source.name]
