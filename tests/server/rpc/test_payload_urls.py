"""URLs that tasks give: of the payloads that they name, and only where there is an object store."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from bnncore.errors import ConfigurationError
from server.coordinator.messages import ModelStep, TaskOrder
from server.rpc.convert import task_message
from server.rpc.payload_urls import PayloadUrls
from server.settings import Settings
from server.storage.blob_stores import open_blobs
from server.storage.blobs import LocalBlobs
from tests.s3_server import S3Server

ORDER = TaskOrder(
    "task", "job", 1, "", 0, None, "{}", "bitfleet", "latent8m", 10, 1, 1.0, 0, "int8", "int8", ("a", "b"), 0.0
)


def read(url: str) -> bytes:
    with urlopen(url) as answer:
        data: bytes = answer.read()
        return data


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_task_gives_urls_of_its_model_and_steps_for_a_while(s3_server: S3Server, tmp_path: Path) -> None:
    blobs = open_blobs(Settings(state=tmp_path, blobs=s3_server.url_of("urls")))
    model, step = blobs.put(b"the model"), blobs.put(b"a step")
    blobs.put(b"another job's")
    clock = Clock()
    urls = PayloadUrls(blobs, clock)
    order = dataclasses.replace(ORDER, model_digest=model, steps=(ModelStep("00", step, 6),))

    given = await urls.of_task(order)
    task = task_message(order, now=0.0, urls=given).task
    assert given.keys() == {model, step}
    assert read(task.download_url) == b"the model"
    assert read(task.steps[0].download_url) == b"a step"
    with pytest.raises(HTTPError, match="403"):  # its signature is for that one payload
        read(task.download_url.replace(f"{model[:2]}/{model}", f"{step[:2]}/{step}"))

    assert await urls.of_task(order) == given
    clock.now = 301.0
    assert len(urls._signed) == 2
    assert (await urls.of_task(dataclasses.replace(order, steps=()))).keys() == {model}
    assert len(urls._signed) == 1


async def test_a_folder_gives_none(tmp_path: Path) -> None:
    given = await PayloadUrls(LocalBlobs(tmp_path)).of_task(dataclasses.replace(ORDER, model_digest="0" * 64))

    assert given == {}
    assert task_message(ORDER, now=0.0, urls=given).task.download_url == ""
    with pytest.raises(ConfigurationError, match="--presigned-downloads needs an object store"):
        Settings(presigned_downloads=True)
