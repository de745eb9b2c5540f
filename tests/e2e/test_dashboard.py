"""The dashboard in a real browser, over TLS: a key, two enrolled devices that learn the digits, every page.

Pictures of all pages are left in build/screenshots.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import REPOSITORY
from tests.e2e.browser import Window, window
from tests.e2e.processes import Process, split_digits
from tests.patience import LIMIT_S, wait_for

PICTURES = REPOSITORY / "build" / "screenshots"
DEVICES = ("kitchen", "porch")
HOSTILE = "<img src=x onerror=alert(1)>"
DRAWN = """Math.max(...Bokeh.documents.flatMap(drawing => [...drawing.all_models])
  .filter(model => model instanceof Bokeh.ColumnDataSource).map(source => source.data.round.length))"""
_READY = re.compile(r"people at (https://\S+?)/\s*$", re.M)


@dataclass
class Served:
    """A coordinator's process, its first key, and a browser that has not logged in."""

    url: str
    key: str
    api: httpx.Client
    view: Window
    root: Path
    processes: list[Process]

    def get(self, path: str) -> Any:
        return self.api.get(f"/api/v1{path}").raise_for_status().json()

    def enrol(self, command: str, name: str, data: Path) -> None:
        """Do on a device what the page says, and start it."""
        token, server, fingerprint = re.match(
            r"BITFLEET_TOKEN=(\S+) bitfleet-client enroll --server (\S+) --ca-fingerprint (\S+)$", command
        ).groups()  # type: ignore[union-attr]
        file, state = self.root / f"{name}.token", str(self.root / name)
        file.write_text(token)
        where = ("--server", server, "--ca-fingerprint", fingerprint, "--device-id", name, "--token-file", str(file))
        enrolled = self.start(name, "edge_client", "enroll", "--state", state, *where)
        assert enrolled.wait() == 0, enrolled.log.read_text()
        self.learn(name, data)

    def learn(self, name: str, data: Path) -> Process:
        """Start an enrolled device."""
        return self.start(name, "edge_client", "run", "--state", str(self.root / name), "--data", str(data))

    def wait_for_rounds(self, job: str, number: int) -> None:
        """Wait until so many rounds of a job are committed."""
        wait_for(f"round {number}", lambda: self.get(f"/jobs/{job}")["rounds_committed"] >= number)

    def start(self, name: str, *words: str) -> Process:
        self.processes.append(Process(["-m", *words], self.root / f"{name}.log", "dashboard"))
        return self.processes[-1]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root, processes = tmp_path_factory.mktemp("dashboard"), []
    log, state = root / "coordinator.log", root / "state"
    here = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--state", str(state))
    try:
        timing = ("--heartbeat-interval", "0.5", "--settle", "0.1")
        processes.append(Process(["-m", "server", "serve", *here, *timing], log, "dashboard"))
        url = wait_for("the coordinator", lambda: _READY.search(log.read_text()))[1]
        key = wait_for("its key", lambda: (state / "identity/admin.key").read_text().strip())
        trust = ssl.create_default_context(cafile=state / "identity" / "ca.pem")
        headers = {"Authorization": f"Bearer {key}"}
        with (
            httpx.Client(base_url=url, headers=headers, verify=trust, trust_env=False, timeout=LIMIT_S) as api,
            window(url) as view,
        ):
            yield Served(url, key, api, view, root, processes)
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_from_a_key_to_a_curve_that_grows_without_leaving_the_browser(served: Served) -> None:
    view, page = served.view, served.view.page

    # A wrong key, then the right one, and the page that was asked for.
    view.open("/devices")
    assert page.title() == "Log in · bitfleet"
    look_at(view, "login")
    page.get_by_label("API key").fill("bfk_0_wrong")
    page.get_by_role("button", name="Log in").click()
    assert "not known here" in page.get_by_role("alert").inner_text()
    assert page.get_by_label("API key").get_attribute("aria-invalid") == "true"
    view.complaints.clear()  # that the answer was 401
    page.get_by_label("API key").fill(served.key)
    page.keyboard.press("Enter")
    page.wait_for_url("**/devices")
    assert "No device has connected yet" in page.inner_text("main")

    # A token, whose QR code is that of the command.
    page.get_by_role("link", name="Enrol").click()
    page.get_by_role("spinbutton", name="Devices").fill("2")
    page.get_by_role("button", name="Make a token").click()
    command = page.locator(".command code").first.inner_text()
    assert drawn(page) == code_of(command)
    look_at(view, "token")
    data = split_digits(served.root / "data", DEVICES)
    for name in DEVICES:
        served.enrol(command, name, data[name])
    last = served.processes[-1]

    # A job, watched from its first round on: the curve grows, and nothing that was opened or focused is lost. While
    # something is done in the page the job waits for a device, however long that takes.
    job = served.api.post("/api/v1/jobs", json=digits(rounds=45)).raise_for_status().json()["id"]
    served.wait_for_rounds(job, 1)
    last.terminate()
    view.open(f"/jobs/{job}")
    page.locator("[data-chart]").first.wait_for()
    page.get_by_text("The job as it was asked for").click()
    page.get_by_text("Its network").focus()
    page.evaluate("scrollTo(0, 120)")
    last = served.learn(DEVICES[-1], data[DEVICES[-1]])
    served.wait_for_rounds(job, 3)
    last.terminate()
    grown = "n => JSON.parse(document.querySelector('[data-chart]').dataset.chart).rounds.length >= n"
    view.until("three rounds", grown, 3)
    view.until("three rounds in the chart", f"{DRAWN} >= 3")
    assert page.evaluate("[document.activeElement.textContent, scrollY]") == ["Its network", 120]
    assert page.locator("details[open] pre").count() == 1
    view.until("the link", "document.getElementById('link').textContent === 'live'")

    # Paused by the button of the page; what it has learnt is looked at meanwhile, so that no round ends it.
    page.get_by_role("button", name="Pause").click()
    page.get_by_text("paused by the operator").wait_for()
    assert served.get(f"/jobs/{job}")["state"] == "PAUSED"
    view.picture(PICTURES / "paused-1280-light.png")

    # A round, from the table; its device; the model, and a version of it as a file. By the keyboard: as times grow
    # longer rows move, and a click may meet the one that is there by then.
    page.get_by_role("link", name="3", exact=True).press("Enter")
    page.wait_for_url("**/rounds/3")
    assert page.title() == "Round 3 of digits · bitfleet"
    assert all(name in page.inner_text("main") for name in (*DEVICES, "accepted", "None"))
    view.open(f"/models/{job}")
    with page.expect_download() as download:
        page.get_by_role("link", name="Version 1 as safetensors").press("Enter")
    assert download.value.suggested_filename == f"{job}-v1.safetensors"
    assert Path(download.value.path()).stat().st_size > 1000
    for version in (1, 2):
        page.get_by_role("button", name=f"Promote version {version}", exact=True).press("Enter")
        page.get_by_text(f"Version {version}, promoted").wait_for()
    page.get_by_role("button", name="Roll back").click()
    page.get_by_text("Version 1, promoted").wait_for()
    page.get_by_role("link", name="Version 1", exact=True).press("Enter")
    page.wait_for_url("**/versions/1")
    page.get_by_role("button", name="Compare").press("Enter")
    page.wait_for_url("**/versions/1?other=*")
    assert "updates of 2 devices asked" in page.inner_text("main")
    assert page.get_by_role("rowheader").count() > 3

    # Resumed, and cancelled once it has gone on.
    view.open(f"/jobs/{job}")
    page.get_by_role("button", name="Resume").click()
    before = served.get(f"/jobs/{job}")["rounds_committed"]
    last = served.learn(DEVICES[-1], data[DEVICES[-1]])
    served.wait_for_rounds(job, before + 1)
    last.terminate()
    view.until("one round more", grown, before + 1)
    page.get_by_text("Cancel…").click()
    page.get_by_role("button", name="Cancel the job").click()
    page.get_by_text("cancelled by the operator").wait_for()
    page.get_by_role("link", name="New job like this").click()
    page.get_by_label("Its text").fill(page.get_by_label("Its text").input_value().replace("digits", "again", 1))
    page.get_by_role("button", name="Create the job").click()
    page.wait_for_url("**/jobs/again-*")
    page.get_by_text("Cancel…").click()
    page.get_by_role("button", name="Cancel the job").click()
    page.get_by_text("cancelled by the operator").wait_for()
    view.open("/audit")
    for words in (
        "POST /enrol",
        f"POST /jobs/{job}/pause",
        f"POST /jobs/{job}/resume",
        f"POST /jobs/{job}/cancel",
        "/rollback",
    ):
        assert words in page.inner_text("main")
    assert view.complaints == []


@pytest.mark.slow
def test_each_page_is_for_everybody_on_every_screen(served: Served) -> None:
    view, page = served.view, served.view.page
    (job,) = [job["id"] for job in served.get("/jobs") if job["name"] == "digits"]
    strange = served.api.post("/api/v1/jobs", json=digits(classes=[HOSTILE, *map(str, range(9))])).json()["id"]
    pages = {
        "overview": "/",
        "devices": "/devices",
        "device": f"/devices/{DEVICES[0]}",
        "job": f"/jobs/{job}",
        "strange": f"/jobs/{strange}",
        "round": f"/jobs/{job}/rounds/2",
        "models": "/models",
        "model": f"/models/{job}",
        "version": f"/models/{job}/versions/2?other=1",
        "new-job": f"/jobs/new?job={job}",
        "enrol": "/enrol",
        "keys": "/keys",
        "audit": "/audit",
    }
    for name, path in pages.items():
        view.open(path)
        if name == "job":
            page.locator("[data-chart] canvas").first.wait_for()
        look_at(view, name)
    assert page.evaluate("document.querySelectorAll('main img').length") == 0

    # A job's file is put into the form, with what kind it is.
    view.open("/jobs/new")
    chosen = {"name": "job.json", "mimeType": "application/json", "buffer": b'{"name": "chosen"}'}
    page.get_by_label("Take it from a file").set_input_files(chosen)
    view.until("the text", """document.getElementById("text").value === '{"name": "chosen"}'""")
    assert page.get_by_label("It is").input_value() == "json"

    # By the keyboard alone: past the navigation, and into the light although the system is dark.
    view.shrink(1280, theme="dark")
    view.open("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    button = page.get_by_role("button", name="Show in light colours")
    button.focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert view.complaints == []

    # Without its coordinator a page says so, and keeps what it showed.
    served.processes[0].kill()
    page.get_by_text("link lost, as of").wait_for()
    assert "digits" in page.inner_text("main")
    view.picture(PICTURES / "lost-1280-light.png")


def look_at(view: Window, name: str) -> None:
    """See that a page is right in both widths and both colours, and keep pictures of it."""
    colours = set()
    for theme in ("dark", "light"):
        for width in (390, 1280):
            view.shrink(width, theme=theme)
            assert (name, width, theme, view.wrongs()) == (name, width, theme, [])
            view.picture(PICTURES / f"{name}-{width}-{theme}.png")
        colours.add(view.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2


def digits(**changes: Any) -> dict[str, Any]:
    """A job whose rounds take half a second."""
    return {
        "name": "digits" if not changes.get("classes") else "strange",
        "model": {"zoo": "mlp", "params": {"widths": [64]}},
        "classes": [str(digit) for digit in range(10)],
        "input_shape": [8, 8],
        "rounds": 3,
        "min_devices": 2,
        "quorum": 2,
        "local_steps": 40,
        "statistics_batches": 2,
        "local_validation": 0.2,
        "evaluation": None if changes.get("classes") else {"dataset": "digits"},
        **changes,
    }


def code_of(text: str) -> list[list[bool]]:
    """Make the modules of a text's QR code, with the quiet zone."""
    import segno

    return [[bool(dark) for dark in row] for row in segno.make(text, error="m").matrix_iter(border=4)]


def drawn(page: Any) -> list[list[bool]]:
    """Read the modules of the QR code that the page shows, as a camera would: dark or light in the middle of each."""
    picture = page.locator(".qr svg").screenshot()
    modules: list[list[bool]] = page.evaluate(
        """async ([bytes, side]) => {
          const image = await createImageBitmap(new Blob([new Uint8Array(bytes)]));
          const canvas = new OffscreenCanvas(image.width, image.height);
          const context = canvas.getContext("2d", { willReadFrequently: true });
          context.drawImage(image, 0, 0);
          const dark = (row, column) => context.getImageData(
            (column + 0.5) * image.width / side, (row + 0.5) * image.height / side, 1, 1).data[0] < 128;
          return [...Array(side).keys()].map(row => [...Array(side).keys()].map(column => dark(row, column)));
        }""",
        [list(picture), int(page.locator(".qr svg").get_attribute("viewBox").split()[2])],
    )
    return modules
