"""How far it goes: sites between devices and the centre, and the page that computes what fleets take."""

from __future__ import annotations

from pathlib import Path

from benchmarks import hierarchy, scale_model

COMMAND = "python -m benchmarks.scale_model --page docs/scale.md"


def test_sites_give_the_model_of_the_flat_fleet_in_the_clear_and_under_masks() -> None:
    result = hierarchy.play("mlp", sites=3, devices=4)

    ways = [result[way] for way in ("int8", "sign", "masked")]
    assert [way["is_same"] for way in ways] == [True] * 3
    assert len({way["weights_digest"] for way in ways}) == 3
    masked = result["masked"]["centre_bytes"]
    assert 3.5 < masked["flat"] / masked["sites"] < 4.5  # a member's bytes hardly depend on how many there are


def test_the_page_shows_what_the_model_computes_of_what_was_measured() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "scale.md").read_text()

    assert scale_model.fill(page, scale_model.tables()) == page, COMMAND
