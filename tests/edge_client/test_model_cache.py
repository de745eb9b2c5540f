import hashlib
from pathlib import Path

import pytest

from edge_client.errors import TaskFailedError
from edge_client.model_cache import ModelCache, ModelCaches


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(cache: ModelCache, data: bytes) -> Path | None:
    with cache.open_partial(digest_of(data)) as file:
        file.write(data)
    return cache.complete(digest_of(data))


def test_a_payload_is_found_once_it_is_whole(tmp_path: Path) -> None:
    cache, digest = ModelCache(tmp_path), digest_of(b"model")

    with cache.open_partial(digest) as file:
        file.write(b"mod")
    assert (cache.find(digest), cache.partial_bytes(digest)) == (None, 3)
    with cache.open_partial(digest) as file:
        file.write(b"el")
    path = cache.complete(digest)

    assert path is not None
    assert path.read_bytes() == b"model"
    assert (cache.find(digest), cache.partial_bytes(digest)) == (path, 0)


def test_other_bytes_than_the_digest_names_are_thrown_away(tmp_path: Path) -> None:
    cache, digest = ModelCache(tmp_path), digest_of(b"model")
    with cache.open_partial(digest) as file:
        file.write(b"other")

    assert cache.complete(digest) is None
    assert list(tmp_path.iterdir()) == []


def test_the_two_newest_payloads_stay(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)

    for data in (b"1", b"2", b"3"):
        put(cache, data)

    assert set(cache.sizes()) == {digest_of(b"2"), digest_of(b"3")}


def test_a_new_download_takes_the_place_of_an_unfinished_one(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    with cache.open_partial(digest_of(b"1")) as file:
        file.write(b"")

    put(cache, b"2")

    assert cache.partial_bytes(digest_of(b"1")) == 0
    assert list(cache.sizes()) == [digest_of(b"2")]


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_a_digest_that_is_none_never_becomes_a_path(tmp_path: Path, digest: str) -> None:
    with pytest.raises(TaskFailedError, match="SHA-256"):
        ModelCache(tmp_path).find(digest)


def test_a_job_finds_its_newest_model_whatever_other_jobs_did_in_between(tmp_path: Path) -> None:
    caches = ModelCaches(tmp_path, jobs=3)
    put(caches.of("slow"), b"slow, 1")
    put(caches.of("slow"), b"slow, 2")

    for number in range(5):
        put(caches.of("quick"), f"quick, {number}".encode())

    assert caches.find(digest_of(b"slow, 2")) is not None
    assert set(caches.sizes()) == {digest_of(data) for data in (b"slow, 2", b"quick, 3", b"quick, 4")}


def test_the_models_of_jobs_that_were_at_work_longest_ago_go(tmp_path: Path) -> None:
    caches = ModelCaches(tmp_path, jobs=2)

    for job in ("first", "second", "third"):
        put(caches.of(job), job.encode())

    assert set(caches.sizes()) == {digest_of(b"second"), digest_of(b"third")}


def test_a_model_is_found_and_dropped_whichever_job_it_is_of(tmp_path: Path) -> None:
    caches = ModelCaches(tmp_path)
    path = put(caches.of("first"), b"model")
    caches.of("second")

    found = caches.find(digest_of(b"model"))
    caches.discard(digest_of(b"model"))

    assert (found, caches.find(digest_of(b"model"))) == (path, None)
