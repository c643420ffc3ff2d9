"""What every blob store promises: bytes are whole under a place, or nowhere."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import requests

from kolejka.common.errors import Conflict, InputError, KolejkaError, Unavailable
from kolejka.common.settings import ServerSettings
from kolejka.server.storage import blob_bucket
from kolejka.server.storage.blob_bucket import BlobBucket
from kolejka.server.storage.blob_store import BlobStore, new_place, open_blob_store, reference_at

DATA = b"some bytes" * 300_000
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.needs("s3"))])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> ServerSettings:
    """Where each kind of store is."""
    if request.param == "folder":
        return ServerSettings(data=tmp_path)
    return request.getfixturevalue("s3").settings(tmp_path)


@pytest.fixture
def store(settings: ServerSettings) -> BlobStore:
    return open_blob_store(settings)


def put(store: BlobStore, data: bytes = DATA) -> str:
    upload = store.receive(hashlib.sha256(data).hexdigest(), len(data))
    try:
        upload.write(data)
        return upload.finish()
    finally:
        upload.abort()


def read(store: BlobStore, place: str, start: int = 0, stop: int = len(DATA)) -> bytes:
    reader = store.open(place, start, stop)
    try:
        return b"".join(iter(lambda: reader.read(100_000), b""))
    finally:
        reader.close()
        reader.close()


def everything(store: BlobStore, tmp_path: Path) -> list[str]:
    """Places, and files of uploads on the server's disk."""
    files = [path.name for path in tmp_path.rglob("*") if path.is_file() and path.parent.name == "incoming"]
    return [*(kept.place for kept in store.places()), *files]


def test_an_upload_is_there_when_it_is_finished_and_not_before(store: BlobStore, tmp_path: Path) -> None:
    upload = store.receive(SHA, len(DATA))
    upload.write(DATA[:5000])
    upload.write(bytearray(DATA[5000:]))
    assert list(store.places()) == []
    place = upload.finish()
    upload.abort()
    (kept,) = store.places()
    assert (kept.place, kept.size, reference_at(place)) == (place, len(DATA), SHA)
    assert abs(kept.written_at - time.time()) < 60
    assert read(store, place) == DATA
    assert everything(store, tmp_path) == [place]


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (5, 1_500_003), (len(DATA) - 1, len(DATA)), (7, 7)])
def test_a_part_is_read(store: BlobStore, start: int, stop: int) -> None:
    assert read(store, put(store), start, stop) == DATA[start:stop]


def test_nothing_at_all_is_a_blob_too(store: BlobStore) -> None:
    assert read(store, put(store, b""), 0, 0) == b""


@pytest.mark.parametrize("resume", [None, "7"])
@pytest.mark.parametrize(
    ("size", "data", "code"),
    [
        (len(DATA), b"", "truncated"),
        (len(DATA) - 1, DATA, "truncated"),
        (len(DATA), b"x" + DATA[1:], "hash_mismatch"),
    ],
)
def test_other_bytes_leave_nothing(
    store: BlobStore, tmp_path: Path, *, size: int, data: bytes, code: str, resume: str | None
) -> None:
    upload = store.receive(SHA, size, resume=resume)

    def send() -> None:
        upload.write(data)
        upload.finish()

    with pytest.raises(InputError) as caught:
        send()
    upload.abort()
    upload.abort()
    assert caught.value.code == code
    assert everything(store, tmp_path) == []


def test_an_upload_that_cannot_be_resumed_leaves_nothing_when_it_breaks(store: BlobStore, tmp_path: Path) -> None:
    upload = store.receive(SHA, len(DATA))
    upload.write(DATA[:-1])
    with pytest.raises(InputError, match="broke off after"):
        upload.finish()
    upload.abort()
    assert everything(store, tmp_path) == []


def test_an_upload_goes_on_where_it_broke_off(store: BlobStore, settings: ServerSettings, tmp_path: Path) -> None:
    upload = store.receive(SHA, len(DATA), resume="7")
    upload.write(DATA[:1_000_000])
    upload.abort()
    store = open_blob_store(settings)  # another life of the server
    assert store.received(SHA, "7") == 1_000_000
    assert store.received(SHA, "8") == 0, "it is another user's"
    assert list(store.places()) == []
    with pytest.raises(Conflict, match="goes on at byte 1000000"):
        store.receive(SHA, len(DATA), resume="7", offset=999_999)
    upload = store.receive(SHA, len(DATA), resume="7", offset=1_000_000)
    upload.write(DATA[1_000_000:])
    place = upload.finish()
    upload.abort()
    assert read(store, place) == DATA
    assert everything(store, tmp_path) == [place]
    assert store.received(SHA, "7") == 0


def test_an_upload_goes_on_over_one_connection_at_a_time(store: BlobStore) -> None:
    upload = store.receive(SHA, len(DATA), resume="7")
    upload.write(DATA[:10])
    with pytest.raises(Conflict, match="under way"):
        store.receive(SHA, len(DATA), resume="7", offset=10)
    with pytest.raises(Unavailable, match="under way"):
        store.received(SHA, "7")
    other = store.receive(SHA, len(DATA), resume="8")
    other.abort()
    upload.abort()
    assert store.received(SHA, "7") == 10


def test_what_came_before_the_break_is_hashed_again(store: BlobStore, tmp_path: Path) -> None:
    upload = store.receive(SHA, len(DATA), resume="7")
    upload.write(b"other" + DATA[5:1000])
    upload.abort()
    upload = store.receive(SHA, len(DATA), resume="7", offset=1000)
    upload.write(DATA[1000:])
    with pytest.raises(InputError) as caught:
        upload.finish()
    upload.abort()
    assert caught.value.code == "hash_mismatch"
    assert everything(store, tmp_path) == []


def test_old_uploads_are_swept_and_those_under_way_are_not(store: BlobStore, tmp_path: Path) -> None:
    broken = store.receive(SHA, len(DATA), resume="7")
    broken.write(DATA[:10])
    broken.abort()
    under_way = store.receive(SHA, len(DATA), resume="8")
    under_way.write(DATA[:10])
    once = store.receive(SHA, len(DATA))
    assert store.sweep_incoming(time.time() - 3600) == 0
    assert store.sweep_incoming(time.time() + 3600) == 1
    assert store.received(SHA, "7") == 0
    under_way.write(DATA[10:])
    once.write(DATA)
    assert read(store, under_way.finish()) == read(store, once.finish()) == DATA


def test_the_same_bytes_again_have_another_place(store: BlobStore) -> None:
    first, second = put(store), put(store)
    store.remove([first])
    assert read(store, second) == DATA


def test_what_is_removed_is_gone_and_may_be_removed_again(store: BlobStore) -> None:
    place = put(store)
    store.remove([place, new_place(SHA)])
    store.remove([place])
    assert list(store.places()) == []
    with pytest.raises(FileNotFoundError):
        read(store, place)


@pytest.mark.parametrize("name", ["", "x", "../../etc/passwd", "ab/../../x", SHA, "incoming/x"])
def test_only_a_place_is_read_or_removed(store: BlobStore, name: str) -> None:
    with pytest.raises(ValueError, match="is no place"):
        store.open(name, 0, 1)
    with pytest.raises(ValueError, match="is no place"):
        store.remove([name])


def test_a_name_is_no_hash(store: BlobStore) -> None:
    for name in ("", "x", "../" * 21 + "a", SHA.upper(), SHA + "0"):
        for act in (lambda n=name: store.receive(n, 1), lambda n=name: store.received(n, "7")):
            with pytest.raises(InputError):
                act()


def test_a_store_that_answers_says_so(store: BlobStore) -> None:
    store.check()
    assert store.free_bytes() > 0


# Directly


@pytest.fixture
def direct(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    """A store that takes bytes from others."""
    return open_blob_store(request.getfixturevalue("s3").settings(tmp_path))


def test_a_folder_gives_no_addresses(tmp_path: Path) -> None:
    store = open_blob_store(ServerSettings(data=tmp_path))
    assert store.invite(SHA, "7", 60) is None
    assert store.link(put(store), 60) is None
    with pytest.raises(InputError, match="gives no tickets"):
        store.collect(SHA, "7", "0" * 32, len(DATA))


def arrivals(store: BlobStore) -> int:
    """How many objects nobody has collected; removes them."""
    return store.sweep_incoming(time.time() + 3600)


@pytest.mark.needs("s3")
def test_bytes_put_directly_are_a_blob_when_they_are_collected(direct: BlobStore) -> None:
    invited = direct.invite(SHA, "7", 60)
    assert invited is not None
    assert requests.put(invited.url, data=DATA, timeout=30).status_code == 200
    assert list(direct.places()) == []
    place = direct.collect(SHA, "7", invited.ticket, len(DATA))
    assert read(direct, place) == DATA
    assert arrivals(direct) == 0
    # The address is still good; it leads to nothing that anybody looks at.
    assert requests.put(invited.url, data=b"other bytes", timeout=30).status_code == 200
    assert read(direct, place) == DATA
    assert arrivals(direct) == 1


@pytest.mark.needs("s3")
@pytest.mark.parametrize(
    ("data", "code"), [(DATA[:-1], "truncated"), (b"x" + DATA[1:], "hash_mismatch"), (DATA + b"x", "truncated")]
)
def test_other_bytes_put_directly_leave_nothing(direct: BlobStore, data: bytes, code: str) -> None:
    invited = direct.invite(SHA, "7", 60)
    assert invited is not None
    requests.put(invited.url, data=data, timeout=30)
    with pytest.raises(InputError) as caught:
        direct.collect(SHA, "7", invited.ticket, len(DATA))
    assert caught.value.code == code
    assert (list(direct.places()), arrivals(direct)) == ([], 0)


@pytest.mark.needs("s3")
def test_a_ticket_is_good_for_its_user_its_hash_and_once(direct: BlobStore) -> None:
    invited = direct.invite(SHA, "7", 60)
    assert invited is not None
    requests.put(invited.url, data=DATA, timeout=30)
    other = hashlib.sha256(b"").hexdigest()
    for sha, whose, ticket in (
        (SHA, "8", invited.ticket), (other, "7", invited.ticket), (SHA, "7", "0" * 32), (SHA, "7", "../7"),
    ):  # fmt: skip
        with pytest.raises(InputError):
            direct.collect(sha, whose, ticket, len(DATA))
    direct.collect(SHA, "7", invited.ticket, len(DATA))
    with pytest.raises(InputError, match="nothing was uploaded"):
        direct.collect(SHA, "7", invited.ticket, len(DATA))


@pytest.mark.needs("s3")
def test_a_link_gives_the_bytes_and_parts_of_them(direct: BlobStore) -> None:
    link = direct.link(put(direct), 60)
    assert link is not None
    assert requests.get(link, timeout=30).content == DATA
    assert requests.get(link, headers={"Range": "bytes=10-19"}, timeout=30).content == DATA[10:20]


# Directly, in parts

LARGE = bytes(range(251)) * 50_000
LARGE_SHA = hashlib.sha256(LARGE).hexdigest()


@pytest.fixture
def in_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> BlobBucket:
    """A store that takes bytes of others in parts of 5 MiB, the least that S3 knows, and tells of two at a time."""
    for name, value in (("PARTS_FROM", 1), ("PART", 5 << 20), ("BATCH", 2)):
        monkeypatch.setattr(blob_bucket, name, value)
    store = open_blob_store(request.getfixturevalue("s3").settings(tmp_path))
    assert isinstance(store, BlobBucket)
    return store


def wanted(store: BlobStore, whose: str = "7", size: int = len(LARGE)) -> dict[int, str]:
    """Number → address of parts that are missing."""
    parts = store.parts(LARGE_SHA, whose, size, 60)
    assert parts is not None
    assert parts.size == 5 << 20
    return {part.number: part.url for part in parts.missing}


def send(parts: Mapping[int, str], data: bytes = LARGE) -> None:
    for number, url in parts.items():
        piece = data[(number - 1) * (5 << 20) : number * (5 << 20)]
        assert requests.put(url, data=piece, timeout=30).status_code == 200


def send_all(store: BlobStore, data: bytes = LARGE) -> None:
    while parts := wanted(store):
        send(parts, data)


def uploads(store: BlobBucket) -> int:
    """How many multipart uploads go on in the bucket."""
    return len(store._client.list_multipart_uploads(Bucket=store._bucket).get("Uploads", ()))


@pytest.mark.needs("s3")
def test_bytes_that_come_in_parts_are_a_blob_when_they_are_assembled(in_parts: BlobBucket) -> None:
    first = wanted(in_parts)
    assert set(first) == {1, 2}
    send(first)
    last = wanted(in_parts)
    assert set(last) == {3}
    with pytest.raises(InputError, match="2 of 3 parts"):
        in_parts.assemble(LARGE_SHA, "7", len(LARGE))
    send(last)
    assert wanted(in_parts) == {}
    assert list(in_parts.places()) == []
    place = in_parts.assemble(LARGE_SHA, "7", len(LARGE))
    assert read(in_parts, place, 0, len(LARGE)) == LARGE
    assert (uploads(in_parts), arrivals(in_parts)) == (0, 0)
    assert not requests.put(first[1], data=b"other bytes", timeout=30).ok, "the address leads nowhere any more"
    assert read(in_parts, place, 0, 3) == LARGE[:3]
    with pytest.raises(InputError, match="no parts"):
        in_parts.assemble(LARGE_SHA, "7", len(LARGE))


@pytest.mark.needs("s3")
def test_an_upload_in_parts_is_taken_up_by_its_user_and_by_any_server(in_parts: BlobBucket, tmp_path: Path) -> None:
    send({1: wanted(in_parts)[1]})
    other = BlobBucket(in_parts._client, in_parts._bucket, in_parts._prefix.rstrip("/"), tmp_path / "other")
    assert set(wanted(other)) == {2, 3}
    assert set(wanted(other, whose="8")) == {1, 2}
    assert requests.put(wanted(other)[2], data=b"not all of it", timeout=30).status_code == 200
    assert set(wanted(other)) == {2, 3}, "a part of another length is none"
    send_all(other)
    assert read(other, other.assemble(LARGE_SHA, "7", len(LARGE)), 0, len(LARGE)) == LARGE


@pytest.mark.needs("s3")
def test_other_bytes_in_parts_leave_nothing(in_parts: BlobBucket) -> None:
    send_all(in_parts, LARGE[:-1] + b"!")
    with pytest.raises(InputError) as caught:
        in_parts.assemble(LARGE_SHA, "7", len(LARGE))
    assert caught.value.code == "hash_mismatch"
    assert (list(in_parts.places()), uploads(in_parts), arrivals(in_parts)) == ([], 0, 0)
    assert set(wanted(in_parts)) == {1, 2}, "it begins anew"


@pytest.mark.needs("s3")
def test_a_part_that_is_changed_at_the_last_moment_leaves_nothing(
    in_parts: BlobBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has looked which parts are there, an address is still good, and the store heeds no tags."""
    addresses = {1: wanted(in_parts)[1]}
    send_all(in_parts)
    addresses[3] = addresses[1].replace("partNumber=1", "partNumber=3")
    look = in_parts._arrived

    def looked(going: Any) -> Any:
        found = look(going)
        put = requests.put(addresses[3], data=LARGE[10 << 20 :] + b"more", timeout=30)
        return {**found, 3: put.headers["ETag"]}

    monkeypatch.setattr(in_parts, "_arrived", looked)
    with pytest.raises(InputError, match="bytes were uploaded"):
        in_parts.assemble(LARGE_SHA, "7", len(LARGE))
    assert (list(in_parts.places()), arrivals(in_parts)) == ([], 0)


@pytest.mark.needs("s3")
def test_an_upload_in_parts_of_another_size_begins_anew(in_parts: BlobBucket) -> None:
    send(wanted(in_parts))
    assert set(wanted(in_parts, size=len(LARGE) - 1)) == {1, 2}
    assert uploads(in_parts) == 1
    with pytest.raises(InputError, match="no parts"):
        in_parts.assemble(LARGE_SHA, "7", len(LARGE))


@pytest.mark.needs("s3")
def test_what_failed_while_it_was_verified_is_asked_again(
    in_parts: BlobBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_all(in_parts)

    def fail(place: str, size: int) -> str:
        raise Unavailable("the store of blobs fails")

    with monkeypatch.context() as patched:
        patched.setattr(in_parts, "_hash", fail)
        with pytest.raises(Unavailable):
            in_parts.assemble(LARGE_SHA, "7", len(LARGE))
    assert wanted(in_parts) == {}
    place = in_parts.assemble(LARGE_SHA, "7", len(LARGE))
    assert [kept.place for kept in in_parts.places()] == [place]


@pytest.mark.needs("s3")
def test_of_two_that_assemble_at_once_only_the_first_is_told_the_place(
    in_parts: BlobBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told late, it might name bytes that a sweep has taken since."""
    send_all(in_parts)
    verify, told = in_parts._hash, []

    def overtaken(place: str, size: int) -> str:
        monkeypatch.setattr(in_parts, "_hash", verify)
        told.append(in_parts.assemble(LARGE_SHA, "7", len(LARGE)))
        return verify(place, size)

    monkeypatch.setattr(in_parts, "_hash", overtaken)
    with pytest.raises(InputError, match="over another connection"):
        in_parts.assemble(LARGE_SHA, "7", len(LARGE))
    assert read(in_parts, told[0], 0, len(LARGE)) == LARGE


@pytest.mark.needs("s3")
def test_uploads_in_parts_that_nobody_asks_about_are_swept(in_parts: BlobBucket) -> None:
    send(wanted(in_parts))
    assert in_parts.sweep_incoming(time.time() - 3600) == 0
    assert uploads(in_parts) == 1
    assert in_parts.sweep_incoming(time.time() + 3600) == 1
    assert (uploads(in_parts), arrivals(in_parts)) == (0, 0)
    assert set(wanted(in_parts)) == {1, 2}
    wanted(in_parts)
    in_parts._client.abort_multipart_upload(  # as a rule of the bucket does
        **in_parts._key(in_parts._going(f"incoming/7-{LARGE_SHA}-parts").place),
        UploadId=in_parts._going(f"incoming/7-{LARGE_SHA}-parts").upload,
    )
    assert set(wanted(in_parts)) == {1, 2}


@pytest.mark.needs("s3")
def test_small_blobs_come_in_one_piece_and_large_ones_in_no_more_parts_than_s3_takes(direct: BlobStore) -> None:
    assert direct.parts(SHA, "7", len(DATA), 60) is None
    size = 5 << 40
    parts = direct.parts(LARGE_SHA, "7", size, 60)
    assert parts is not None
    assert len(parts.missing) == blob_bucket.BATCH
    assert size / parts.size <= 10_000
    assert "content-length" in parts.missing[0].url, "an address takes so many bytes and no more"


def test_a_folder_takes_no_parts(tmp_path: Path) -> None:
    store = open_blob_store(ServerSettings(data=tmp_path))
    assert store.parts(SHA, "7", 5 << 40, 60) is None
    with pytest.raises(InputError, match="takes no parts"):
        store.assemble(SHA, "7", len(DATA))


# A store that fails


def test_a_full_disk_is_said_and_leaves_nothing(small_disk: Path) -> None:
    store = open_blob_store(ServerSettings(data=small_disk))
    kept = put(store, b"kept" * 100_000)
    data = bytes(6 << 20)
    for resume in (None, "7"):
        upload = store.receive(hashlib.sha256(data).hexdigest(), len(data), resume=resume)
        with pytest.raises(Unavailable, match="No space left on device"):
            upload.write(data)
        upload.abort()
        assert everything(store, small_disk) == [kept]
    assert read(store, kept, 0, 400_000) == b"kept" * 100_000
    assert put(store, bytes(1 << 20)), "the room is free again"


@pytest.mark.needs("s3")
def test_a_bucket_that_is_not_there_or_does_not_answer_is_said_without_secrets(s3: object, tmp_path: Path) -> None:
    words = s3.settings(tmp_path)  # type: ignore[attr-defined]
    cases = [(words.blobs, "http://127.0.0.1:1"), ("s3://no-such-bucket/x", words.s3_endpoint)]
    for blobs, endpoint in cases:
        with pytest.raises(Unavailable, match="the store of blobs fails") as caught:
            open_blob_store(
                ServerSettings(
                    data=tmp_path, blobs=blobs, s3_endpoint=endpoint, s3_key="test-key", s3_secret="test-secret-word"
                )
            ).check()
        assert "\n" not in str(caught.value)
        assert "test-secret-word" not in str(caught.value) + repr(words)


@pytest.mark.parametrize("blobs", ["gs://bucket", "s3://", "s3://B", "s3:///x", "http://host/bucket"])
def test_an_address_that_is_no_store_is_refused(tmp_path: Path, blobs: str) -> None:
    with pytest.raises(KolejkaError) as caught:
        open_blob_store(ServerSettings(data=tmp_path, blobs=blobs))
    assert caught.value.field == "server.blobs"
