"""The tutorial's own commands, one after the other, by a newcomer with nothing but the wheel.

What stands in the page is what runs here: only the coordinator's name and ports, the fingerprint and the job's id are
those of the moment, `try` tries for three seconds, and the token comes from the environment in place of the keyboard.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.e2e.browser import has_chromium, window
from tests.patience import wait_for
from tests.test_packaging import REPOSITORY
from tests.wheel import built_wheel

PAGE = (REPOSITORY / "docs" / "three-pis.md").read_text()
LIMIT_S = 600.0
SIDE = 40
DEVICES = {"pi-1": ("circle", "square"), "pi-2": ("triangle", "cross")}
SHAPES = [shape for shapes in DEVICES.values() for shape in shapes]
STAYS = re.compile(r"bitfleet-(server serve|client run)\b")


def blocks(heading: str, language: str = "sh") -> list[list[str]]:
    """The command lines of the page's blocks below a heading."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    found = re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)
    return [block.replace(" \\\n ", "").splitlines() for block in found]


def draw(shape: str, generator: np.random.Generator) -> NDArray[np.uint8]:
    """A bright shape of some size, somewhere on a dark ground."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    middle, size = generator.uniform(16, 24, 2), generator.uniform(9, 13)
    down, right = rows - middle[0], columns - middle[1]
    inside = {
        "circle": down**2 + right**2 < size**2,
        "square": np.maximum(abs(down), abs(right)) < size * 0.85,
        "triangle": (abs(right) < (down + size) / 2) & (down < size),
        "cross": np.minimum(abs(down), abs(right)) < size / 4,
    }[shape]
    picture = generator.normal(60, 12, (SIDE, SIDE, 3))
    picture[inside] += generator.uniform(90, 150, 3)
    return np.clip(picture, 0, 255).astype(np.uint8)


class Machine:
    """A machine of its own: a home, a working folder, and what was exported in its shell."""

    def __init__(self, folder: Path, wheel: Path, here: dict[str, str]) -> None:
        folder.mkdir()
        shutil.copy(wheel, folder)
        self.folder = folder
        self.here = here
        self._exports: list[str] = []
        self._running: list[subprocess.Popen[bytes]] = []
        python = Path(sys.base_prefix) / "bin"
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "LANG", "SSL_"))}
        self._environment = kept | {
            "HOME": str(folder),
            "PATH": f"{python}:/usr/local/bin:/usr/bin:/bin",
            "PIP_CONSTRAINT": str(REPOSITORY / "constraints.txt"),
            "PIP_COMPILE": "0",  # most of what is installed is never imported here
        }

    def types(self, line: str) -> str:
        """Run a line of the page and give what it prints; one that stays runs on, and nothing is given."""
        if line.startswith("export "):
            self._exports.append(line)
            return ""
        for written, meant in self.here.items():
            line = line.replace(written, meant)
        command = ["bash", "-ec", "\n".join([*self._exports, f"exec {line}" if STAYS.match(line) else line])]
        if STAYS.match(line):
            with self.log.open("ab") as log:
                self._running.append(
                    subprocess.Popen(command, cwd=self.folder, env=self._environment, stdout=log, stderr=log)
                )
            return ""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def exports(self, name: str, value: str) -> None:
        self._environment[name] = value

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def close(self) -> list[int]:
        for process in self._running:
            process.send_signal(signal.SIGTERM)
        return [process.wait(LIMIT_S) for process in self._running]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Machine]]:
    root, wheel = tmp_path_factory.mktemp("machines"), built_wheel()
    grpc, http = free_ports(2)
    here = {"0.0.0.0:7070": f"127.0.0.1:{grpc}", "0.0.0.0:8080": f"127.0.0.1:{http}"}
    here |= {"--minutes 0.2": "--minutes 0.05"}
    here |= {"fleet.example:8080": f"localhost:{http}", "fleet.example": "localhost"}
    machines = {name: Machine(root / name, wheel, here) for name in ("coordinator", *DEVICES)}
    generator = np.random.default_rng(9)
    for name, shapes in DEVICES.items():
        for shape in shapes:
            folder = machines[name].folder / "pictures" / "train" / shape
            folder.mkdir(parents=True)
            for number in range(60):
                Image.fromarray(draw(shape, generator)).save(folder / f"{number:04}.png")
    yield machines
    for machine in reversed(machines.values()):
        machine.close()


@pytest.mark.timeout(1500)
def test_the_wheel_has_what_is_no_python() -> None:
    with zipfile.ZipFile(built_wheel()) as wheel:
        packed = set(wheel.namelist())

    for folder in ("server/job_templates", "server/dashboard/templates", "server/dashboard/static"):
        wanted = {f"{folder}/{path.name}" for path in (REPOSITORY / folder).iterdir() if path.is_file()}
        assert wanted
        assert wanted <= packed


@pytest.mark.timeout(1500)
def test_the_page_leads_from_a_wheel_to_a_model(machines: dict[str, Machine]) -> None:
    coordinator, devices = machines["coordinator"], [machines[name] for name in DEVICES]
    serve, token = blocks("The coordinator")
    for line in serve:
        coordinator.types(line)
    wait_for("the coordinator to be ready", lambda: "ready" in coordinator.log.read_text())
    (fingerprint,) = set(re.findall(r"sha256:[0-9a-f]{64}", coordinator.log.read_text()))
    coordinator.here["sha256:0123..."] = fingerprint
    made = coordinator.types(token[0])
    (secret,) = set(re.findall(r"\bbft_\S+", made))

    install, enrol = blocks("Each Pi")
    for name, machine in zip(DEVICES, devices, strict=True):
        machine.exports("BITFLEET_TOKEN", secret)
        if machine is not devices[0]:  # the same installation for all Pis: what pip does once is enough
            (machine.folder / "bitfleet").symlink_to(devices[0].folder / "bitfleet")
        for line in install[0 if machine is devices[0] else 2 :]:
            shown = machine.types(line)
            if "doctor" in line:
                assert all(shape in shown for shape in DEVICES[name])
            if "try" in line:
                assert "%" in shown
        for line in enrol:
            machine.types(line)

    create, look = blocks("The job")
    for line in create:
        coordinator.types(line)
    (job,) = json.loads(coordinator.types("bitfleet-server jobs list --json"))
    coordinator.here["garden-0123abcd"] = job["id"]
    if has_chromium():
        watch(coordinator, job["id"])

    # Its log says so: to ask by the page's command, again and again, takes more of the processor than to learn does.
    wait_for("the job to end", lambda: "event=job_ended" in coordinator.log.read_text(), timeout_s=600)
    finished: dict[str, Any] = json.loads(coordinator.types(f"bitfleet-server jobs show {job['id']} --json"))
    assert finished["state"] == "COMPLETED", finished["reason"]
    assert finished["local_accuracy"] > 45
    top, listed = (coordinator.types(line) for line in look)
    assert "1 completed" in top
    assert job["id"] in listed

    export, predict = blocks("What they learned")
    coordinator.types(export[0])
    assert ask_onnx(coordinator) in SHAPES
    assert right_by_onnx(coordinator.folder / "garden.onnx") > 0.45  # a guess is right in one of four
    told, outbox = (devices[0].types(line) for line in predict)
    assert re.search(r"circle|square|triangle|cross", told)
    assert job["id"] in outbox


def watch(coordinator: Machine, job_id: str) -> None:
    """Log in to the dashboard with the first key, and look at the job until its curve grows."""
    key = (coordinator.folder / "bitfleet-state" / "identity" / "admin.key").read_text().strip()
    with window(f"https://{coordinator.here['fleet.example:8080']}") as view:
        view.open(f"/jobs/{job_id}")
        view.page.get_by_label("API key").fill(key)
        view.complaints.clear()
        view.page.keyboard.press("Enter")
        view.page.wait_for_selector("[data-chart]", state="attached", timeout=LIMIT_S * 1000)
        rounds = "JSON.parse(document.querySelector('[data-chart]')?.dataset.chart ?? '{\"rounds\": []}').rounds.length"
        view.until("the curve to grow", f"{rounds} >= 2")
        for width in (1280, 390):
            view.shrink(width)
            view.picture(REPOSITORY / "build" / "screenshots" / f"three-pis-{width}.png")
        assert view.complaints == []


def ask_onnx(coordinator: Machine) -> str:
    """Run the page's Python on a new picture; give what it says."""
    (snippet,) = blocks("What they learned", "python")
    Image.fromarray(draw("cross", np.random.default_rng(77))).save(coordinator.folder / "picture.png")
    (coordinator.folder / "classify.py").write_text("\n".join(snippet))
    done = subprocess.run(
        [sys.executable, "classify.py"],
        cwd=coordinator.folder,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def right_by_onnx(model: Path) -> float:
    """Classify new pictures of every shape; give the part that is right."""
    session = onnxruntime.InferenceSession(model)
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    generator = np.random.default_rng(78)
    shapes = [shape for shape in SHAPES for _ in range(20)]
    pictures = [np.asarray(Image.fromarray(draw(shape, generator)).resize((32, 32)), np.uint8) for shape in shapes]
    (labels,) = session.run(["label"], {"samples": np.stack(pictures)})
    return float(np.mean([classes[label] == shape for label, shape in zip(labels, shapes, strict=True)]))
