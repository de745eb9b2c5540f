"""Attack what devices send; write the success of each attack as JSON, a page of tables and a picture.

python -m benchmarks.privacy_audit --json PATH [--page PATH] [--plot PATH]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.privacy_audit.inversion import Prior, invert
from benchmarks.privacy_audit.membership import attack
from benchmarks.privacy_audit.report import PICTURED, plot, tables
from benchmarks.privacy_audit.scores import correlations, re_identified, structural_similarity
from benchmarks.privacy_audit.settings import INVERSION, MEMBERSHIP, OTHERS, Setting, received
from benchmarks.privacy_audit.views import DELTA, Images, Model, gaussian_multiplier
from bnncore.data import open_dataset

IMAGES = (1, 4, 8)
"""Of a device, for inversion."""
TARGETS = 24
"""Images that each inversion is judged by."""
_PICTURED_IMAGES = 4
"""Of the devices in the picture."""
_CANDIDATES = np.arange(50_000, 50_999)
"""Rows that no device has: with the true image, 1,000 candidates."""

_MEMBER_IMAGES, _COHORTS, _COHORT_SIZE, _ALONE, _A_COHORT = 20, 8, 50, 40, 40
"""Membership: images of a device, cohorts and their largest size, updates attacked alone, targets in a cohort."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the data folder (the environment variable BITFLEET_DATA)")
    parser.add_argument("--seed", type=int, default=1, help="of the images' order, training and noise (1)")
    parser.add_argument("--json", type=Path, required=True, help="where to write the outcome")
    parser.add_argument("--page", type=Path, help="where to write the tables")
    parser.add_argument("--plot", type=Path, help="where to draw what was rebuilt")
    arguments = parser.parse_args()
    began = time.process_time()
    images = Images(open_dataset("mnist", arguments.data, split="train"))
    inversion, true, rebuilt = attack_by_inversion(images, arguments.seed)
    outcome: dict[str, Any] = {
        "seed": arguments.seed,
        "delta": DELTA,
        "noise_multipliers": {f"{epsilon:g}": gaussian_multiplier(epsilon) for epsilon in (8.0, 1.0)},
        "images": IMAGES,
        "targets": TARGETS,
        "inversion": inversion,
        "membership": attack_by_membership(images, arguments.seed),
        "processor_seconds": time.process_time() - began,
    }
    arguments.json.write_text(json.dumps(outcome, indent=2) + "\n")
    page = tables(outcome)
    print(page, end="")
    if arguments.page:
        arguments.page.write_text(page)
    if arguments.plot:
        plot(arguments.plot, true, rebuilt)
    return 0


def attack_by_inversion(images: Images, seed: int) -> tuple[list[dict[str, Any]], Any, dict[str, Any]]:
    """Give the rows of the table, and true images with the best guess at each by label of the setting."""
    model, prior = Model.fresh(seed), Prior.of(images.public)
    rows = [baseline(images, seed)]
    rebuilt: dict[str, Any] = {}
    for setting in INVERSION:
        found = {}
        for count in (setting.images,) if setting.images else IMAGES:
            true, best, found[str(count)] = invert_setting(setting, count, model, prior, images, seed)
            if count in (setting.images, _PICTURED_IMAGES):
                rebuilt[setting.label] = best[:PICTURED]
            if count == _PICTURED_IMAGES:
                pictured = true[:PICTURED]
        rows.append({"label": setting.label, "by_images": found})
        print(setting.label, found, file=sys.stderr, flush=True)
    return rows, pictured, {label: best for label, best in rebuilt.items() if "600" not in label}


def invert_setting(
    setting: Setting, count: int, model: Model, prior: Prior, images: Images, seed: int
) -> tuple[Any, Any, dict[str, float]]:
    """Attack one setting with so many images a device: targets, the best guess at each, and how good they are."""
    devices = setting.members if setting.rounds == 1 else 1 + OTHERS
    cohorts = max(1, TARGETS // count)
    rows = shards(seed, cohorts, devices, count)
    others = images.pixels(_CANDIDATES)
    true, best, hits = [], [], []
    for held, view in zip(rows, received(setting, model, images, rows, seed=seed, cohorts=cohorts), strict=True):
        guesses = invert(view, model, prior)
        targets = images.pixels(held[0][:TARGETS])
        true.append(targets)
        best.append(guesses[correlations(guesses, targets).argmax(0)])
        hits.append(re_identified(guesses, targets, others))
    return judge(np.vstack(true), np.vstack(best), np.concatenate(hits))


def judge(true: Any, best: Any, hits: Any) -> tuple[Any, Any, dict[str, float]]:
    """Give the images, the guesses, and medians of how alike they are."""
    likeness = [structural_similarity(guess, image) for guess, image in zip(best, true, strict=True)]
    alike = np.diag(correlations(best, true))
    score = {
        "re_identified": float(hits.mean()),
        "ssim": float(np.median(likeness)),
        "correlation": float(np.median(alike)),
    }
    return true, best, score


def baseline(images: Images, seed: int) -> dict[str, Any]:
    """Guess the mean public image of the right digit, without looking at any update."""
    means, others = images.class_means(), images.pixels(_CANDIDATES)
    found = {}
    for count in IMAGES:
        held = shards(seed, TARGETS // count, 1, count)[:, 0].ravel()
        true, guesses = images.pixels(held), means[images.dataset.labels[held]]
        hits = np.array([re_identified(g[None], t[None], others)[0] for g, t in zip(guesses, true, strict=True)])
        found[str(count)] = judge(true, guesses, hits)[2]
    return {"label": "nothing: the mean of the digit's class", "by_images": found}


def shards(seed: int, cohorts: int, devices: int, count: int) -> Any:
    """Deal out images: rows [cohorts, devices, count]; a cohort's first devices have the same in every setting."""
    dealt = np.random.default_rng(seed).permutation(20_000)
    return np.stack([np.resize(np.roll(dealt, -cohort * 800), (devices, count)) for cohort in range(cohorts)])


def attack_by_membership(images: Images, seed: int) -> list[dict[str, Any]]:
    """Give the rows of the table."""
    model = Model.trained(seed, images, 200)
    dealt = np.arange(_COHORTS * _COHORT_SIZE * _MEMBER_IMAGES).reshape(_COHORTS, _COHORT_SIZE, _MEMBER_IMAGES)
    rows = []
    for setting in MEMBERSHIP:
        held = dealt.reshape(-1, 1, _MEMBER_IMAGES)[:_ALONE] if setting.members == 1 else dealt
        views = list(received(setting, model, images, held, seed=seed, cohorts=len(held)))
        targets = held[:, : setting.members].reshape(len(held), -1)[:, :_A_COHORT]
        owner = np.repeat(np.arange(len(held)), targets.shape[1])
        chosen = targets.ravel()
        auc, tpr = attack(views, model, images.pixels(chosen), images.dataset.labels[chosen], owner)
        rows.append({"label": setting.label, "members": len(chosen), "auc": auc, "tpr": tpr})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
