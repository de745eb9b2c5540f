"""The chained file: whatever is done to it is seen, and what a power cut does is told from that."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.chain import GENESIS, Chain, Verdict

LINES = 5


def chain_in(folder: Path) -> Chain:
    return Chain(folder / "ledger.jsonl")


def written(folder: Path, lines: int = LINES) -> Chain:
    chain = chain_in(folder)
    for number in range(lines):
        chain.append({"event": "sending", "number": number})
    return chain


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a chain."""
    chain = written(tmp_path_factory.mktemp("whole"))
    return {path.name: path.read_bytes() for path in (chain.path, chain.head_path)}


def verdict_of(folder: Path) -> Verdict:
    return chain_in(folder).verify()


def texts(chain: Chain) -> list[bytes]:
    return chain.path.read_bytes().splitlines(keepends=True)


def test_each_line_is_bound_to_the_one_before_it_over_restarts(tmp_path: Path) -> None:
    for number in range(LINES):
        chain_in(tmp_path).append({"number": number})

    verdict = verdict_of(tmp_path)

    assert (verdict.lines, verdict.problems, verdict.notes) == (LINES, [], [])
    records = list(chain_in(tmp_path).records())
    assert [record["line"] for record in records] == [1, 2, 3, 4, 5]
    assert records[0]["previous"] == GENESIS
    assert len({record["previous"] for record in records}) == LINES


def test_no_file_is_an_empty_chain(tmp_path: Path) -> None:
    assert verdict_of(tmp_path) == Verdict()


@settings(max_examples=200, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_byte_that_is_changed_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, whole: dict[str, bytes], at: float, flip: int
) -> None:
    folder = tmp_path_factory.mktemp("chain")
    for name, data in whole.items():
        (folder / name).write_bytes(data)
    changed = bytearray(whole["ledger.jsonl"])
    changed[int(at * len(changed))] ^= flip
    (folder / "ledger.jsonl").write_bytes(changed)

    assert verdict_of(folder).problems != []


def test_every_single_byte_of_a_chain_with_a_torn_line_counts(tmp_path: Path) -> None:
    path = written(tmp_path, 2).path
    with path.open("ab") as file:
        file.write(b'{"line": 3, "prev')
    chain = chain_in(tmp_path)
    chain.append({"number": 2})
    whole = path.read_bytes()

    assert verdict_of(tmp_path).problems == []
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert verdict_of(tmp_path).problems != [], whole[max(0, at - 20) : at + 1]


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ([0, 1, 3, 4], "1 lines before line 3 were removed"),
        ([2, 3, 4], "2 lines before line 1 were removed"),
        ([0, 1, 2, 3], "the last 1 of 5 lines are cut off or changed, says ledger.head"),
        ([], "the last 5 of 5 lines are cut off or changed"),
        ([0, 2, 1, 3, 4], "1 lines before line 2 were removed"),
        ([0, 1, 1, 2, 3, 4], "line 3 was inserted, repeated or moved"),
    ],
)
def test_lines_that_are_removed_moved_or_repeated_are_named(tmp_path: Path, order: list[int], words: str) -> None:
    chain = written(tmp_path)
    lines = texts(chain)

    chain.path.write_bytes(b"".join(lines[number] for number in order))

    assert words in verdict_of(tmp_path).problems[0]


@pytest.mark.parametrize("number", range(LINES))
def test_a_line_that_says_something_else_is_noticed(tmp_path: Path, number: int) -> None:
    chain = written(tmp_path)
    lines = texts(chain)
    lines[number] = lines[number].replace(b'"number": %d' % number, b'"number": 9')
    chain.path.write_bytes(b"".join(lines))

    (problem,) = verdict_of(tmp_path).problems

    expected = (
        f"line {LINES} was changed" if number == LINES - 1 else f"what stands before line {number + 2} was changed"
    )
    assert expected in problem


def test_a_line_that_is_made_up_is_noticed(tmp_path: Path) -> None:
    chain = written(tmp_path)
    lines = texts(chain)
    lines.insert(2, b'{"event": "sending"}\n')
    chain.path.write_bytes(b"".join(lines))

    assert verdict_of(tmp_path).problems == [
        "line 3 cannot be read: it was changed or inserted, or the disk has damaged it"
    ]


@pytest.mark.parametrize("lines_before", [0, 1, 3])
def test_a_line_that_a_power_cut_tore_is_no_tampering(tmp_path: Path, lines_before: int) -> None:
    chain = written(tmp_path, lines_before)
    before, head = (path.read_bytes() if path.exists() else None for path in (chain.path, chain.head_path))
    chain.append({"event": "sending", "number": lines_before})
    line = chain.path.read_bytes().removeprefix(before or b"")
    for length in range(1, len(line), 7):
        if head is None:
            chain.head_path.unlink()
        else:
            chain.head_path.write_bytes(head)
        chain.path.write_bytes((before or b"") + line[:length])
        torn = verdict_of(tmp_path)
        chain_in(tmp_path).append({"number": "next"})
        after = verdict_of(tmp_path)

        assert (torn.problems, after.problems) == ([], [])
        assert [len(torn.notes), len(after.notes), after.lines] == [1, 1, lines_before + 1]


def test_power_cuts_one_after_the_other_are_told_apart_from_tampering(tmp_path: Path) -> None:
    path = written(tmp_path, 2).path
    for torn in (b'{"line": 3', b'\n{"line": 3, "pre', b'\n{"line": 3, "torn": ["'):
        with path.open("ab") as file:
            file.write(torn)

    chain_in(tmp_path).append({"number": 2})
    verdict = verdict_of(tmp_path)

    assert (verdict.problems, verdict.lines, len(verdict.notes)) == ([], 3, 3)


@pytest.mark.parametrize("cut", [0, 1])
def test_a_power_cut_between_a_line_and_its_head_is_no_tampering(tmp_path: Path, cut: int) -> None:
    chain = written(tmp_path, 2)
    head = chain.head_path.read_bytes()
    chain.append({"number": 2})
    chain.head_path.write_bytes(head)
    chain.path.write_bytes(chain.path.read_bytes()[: len(chain.path.read_bytes()) - cut])  # its line feed too

    between = verdict_of(tmp_path)
    chain_in(tmp_path).append({"number": 3})

    assert between.problems == []
    assert "the power went between" in between.notes[0]
    assert verdict_of(tmp_path) == Verdict(4, chain_in(tmp_path).verify().head)


def test_the_first_line_may_come_without_its_head(tmp_path: Path) -> None:
    chain = written(tmp_path, 1)
    chain.head_path.unlink()

    assert verdict_of(tmp_path).problems == []


@pytest.mark.parametrize("harm", ["cut", "changed", "no head", "no file"])
def test_what_was_done_stays_visible_when_the_chain_is_gone_on_with(tmp_path: Path, harm: str) -> None:
    chain = written(tmp_path)
    lines = texts(chain)
    match harm:
        case "cut":
            chain.path.write_bytes(b"".join(lines[:-2]))
        case "changed":
            chain.path.write_bytes(b"".join([*lines[:-1], lines[-1].replace(b'"number": 4', b'"number": 5')]))
        case "no head":
            chain.head_path.unlink()
        case "no file":
            chain.path.unlink()

    for number in range(3):
        chain_in(tmp_path).append({"number": number})

    problems = verdict_of(tmp_path).problems
    assert len(problems) == 1, problems
    assert list(chain_in(tmp_path).records())[-1]["number"] == 2


def test_a_chain_written_anew_is_noticed_by_who_noted_its_head(tmp_path: Path) -> None:
    noted = written(tmp_path).verify().head
    chain_in(tmp_path).append({"number": "more"})
    assert chain_in(tmp_path).verify(noted).problems == []

    for path in (chain_in(tmp_path).path, chain_in(tmp_path).head_path):
        path.unlink()
    for number in range(LINES):
        chain_in(tmp_path).append({"number": -number})

    assert verdict_of(tmp_path).problems == []
    assert "that was noted" in chain_in(tmp_path).verify(noted).problems[0]


def test_a_line_that_could_not_be_written_is_looked_up_again(tmp_path: Path) -> None:
    chain = written(tmp_path, 2)
    head = chain.head_path.read_bytes()
    chain.head_path.unlink()
    chain.head_path.mkdir()
    with pytest.raises(OSError, match="head"):
        chain.append({"number": "kept, and told as not written"})
    chain.head_path.rmdir()
    chain.head_path.write_bytes(head)

    chain.append({"number": 2})

    assert verdict_of(tmp_path).problems == []
    assert json.loads(texts(chain)[-1])["line"] == 4
