"""Whole exchanges: the sum under masks is the plain sum, or there is none; and what the coordinator sees is noise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnncore.errors import ExchangeFailedError, PayloadError
from bnncore.secure import Combiner, ExchangeRules, Participant, RingLayout, RingSegment, RingVector
from bnncore.secure.messages import Reveal, Shares
from tests.bnncore.secure.exchange_cases import (
    SEED,
    SMALL,
    Exchange,
    assert_sum_is_plain,
    names,
    random_vectors,
)


def small_exchange(number: int, rules: ExchangeRules | None = None, *, secure: bool = False) -> Exchange:
    return Exchange(
        SMALL,
        random_vectors(SMALL, names(number), np.random.default_rng(number)),
        rules or ExchangeRules(),
        secure=secure,
    )


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_sum_under_masks_is_the_plain_sum_whoever_is_lost(data: st.DataObject) -> None:
    number = data.draw(st.integers(3, 12), "members")
    threshold = data.draw(st.sampled_from([0.501, 0.6, 2 / 3, 0.9, 1.0]), "threshold")
    degree = data.draw(st.sampled_from([0, 0, 2, 4, 5, 6]), "degree")
    segments = data.draw(st.lists(st.tuples(st.integers(1, 600), st.integers(1, 64)), min_size=1, max_size=3), "k")
    layout = RingLayout(tuple(RingSegment(f"s{i}", size, bits) for i, (size, bits) in enumerate(segments)))
    order = data.draw(st.permutations(names(number)), "order of loss")
    counts = [data.draw(st.integers(0, math.ceil(0.3 * number)), f"lost in phase {phase}") for phase in range(3)]
    seed = data.draw(st.integers(0, 99), "seed")
    edges = [0, *np.cumsum(counts).tolist()]
    lost = [order[first:last] for first, last in itertools.pairwise(edges)]
    rng = np.random.default_rng(seed)
    exchange = Exchange(
        layout, random_vectors(layout, names(number), rng), ExchangeRules(3, threshold, degree), seed=rng.bytes(32)
    )

    try:
        total = exchange.run(lost)
    except ExchangeFailedError:
        # Only when somebody's holders that answered to the end are too few, or the members.
        remaining = set(names(number)) - set(order[: edges[3]])
        survivors = set(names(number)) - set(order[: edges[2]])
        few = [
            name
            for name in names(number)
            if len(remaining & {name, *exchange.combiner.neighbours_of(name)})
            < exchange.rules.shares_needed(len(exchange.combiner.neighbours_of(name)) + 1)
        ]
        assert few or len(survivors) < 3
    else:
        assert exchange.combiner.survivors == set(names(number)) - set(order[: edges[2]])
        assert_sum_is_plain(exchange, total)


@pytest.mark.parametrize("phase", [0, 1, 2])
@pytest.mark.parametrize("degree", [0, 12])
def test_three_in_ten_can_be_lost_in_any_phase(phase: int, degree: int) -> None:
    exchange = small_exchange(20, ExchangeRules(3, 0.501, degree), secure=True)
    lost: list[list[str]] = [[], [], []]
    lost[phase] = names(20)[1::4] + names(20)[:1]  # six, nowhere three in a row

    total = exchange.run(lost)

    assert exchange.combiner.survivors == set(names(20)) - set(lost[0]) - set(lost[1])
    assert_sum_is_plain(exchange, total)


def test_too_few_answers_end_an_exchange_with_the_reason() -> None:
    short = small_exchange(6)  # 5 of 6 shares open a secret
    with pytest.raises(ExchangeFailedError, match=r"digits, round 3, attempt 1\): only 4 of the 6 devices that hold"):
        short.share(lost=names(2))

    short = small_exchange(6, ExchangeRules(6, 0.501))
    with pytest.raises(ExchangeFailedError, match="only 5 members sent SHARES, 6 are needed"):
        short.share(lost=names(1))

    short = small_exchange(6)
    short.share()
    with pytest.raises(ExchangeFailedError, match=r"only 4 of the 6 devices .* sent MASKED, 5 are needed"):
        short.mask(lost=names(2))

    short = small_exchange(6)
    short.share()
    short.mask()
    short.reveal(lost=names(2))
    assert not short.combiner.is_complete
    assert short.combiner.missing == set(names(2))
    with pytest.raises(ExchangeFailedError, match=r"too few shares .* device-00, .*; device-00, device-01 sent none"):
        short.combiner.finish()
    with pytest.raises(ExchangeFailedError, match="only 2 members, 3 are needed"):
        small_exchange(2)


def test_a_late_answer_can_still_complete_the_sum() -> None:
    exchange = small_exchange(6)
    exchange.share()
    exchange.mask()
    exchange.reveal(lost=names(2))
    with pytest.raises(ExchangeFailedError):
        exchange.combiner.finish()

    exchange.combiner.take_reveal("device-00", exchange.reveal_of("device-00"))

    assert exchange.combiner.is_complete
    assert_sum_is_plain(exchange, exchange.combiner.finish())


def test_a_coordinator_that_starts_again_comes_to_the_same_sum() -> None:
    exchange = small_exchange(7)
    exchange.share(lost=["device-03"])
    exchange.mask(lost=["device-05"])
    exchange.reveal()
    first = exchange.combiner.finish().to_bytes()
    messages = [("shares", name, exchange.shares_of(name)) for name in sorted(exchange.combiner.masking)]
    messages += [("masked", name, exchange.masked[name]) for name in sorted(exchange.combiner.survivors, reverse=True)]
    messages += [("reveal", name, exchange.reveal_of(name)) for name in sorted(exchange.combiner.survivors)]

    again = Combiner(exchange.context, exchange.rules, SMALL, exchange.keys_of, None, SEED)
    for kind, name, message in messages:
        if kind == "shares":
            again.take_shares(name, message)
        elif kind == "masked":
            again.start_masking()
            again.take_masked(name, message)
        else:
            again.start_reveal()
            again.take_reveal(name, message)

    assert again.finish().to_bytes() == first


@pytest.mark.parametrize("guilty", [["device-02"], ["device-02", "device-06"]])
def test_wrong_shares_are_left_out_and_their_senders_named(guilty: list[str]) -> None:
    exchange = small_exchange(9, ExchangeRules(3, 0.6))  # 6 of 9 open a secret
    exchange.share()
    exchange.mask(lost=["device-04"])
    for name in sorted(exchange.combiner.survivors):
        message = exchange.reveal_of(name)
        if name in guilty:
            reveal = Reveal.from_bytes(message)
            spoilt = {
                other: (kind, bytes([share[0] ^ 1]) + share[1:]) for other, (kind, share) in reveal.shares.items()
            }
            message = Reveal(reveal.digest, spoilt).to_bytes()
        exchange.combiner.take_reveal(name, message)

    total = exchange.combiner.finish()

    assert exchange.combiner.wrong_shares == set(guilty)
    assert_sum_is_plain(exchange, total)


def test_too_many_wrong_shares_end_the_exchange() -> None:
    exchange = small_exchange(5)  # 4 of 5 open a secret
    exchange.share()
    exchange.mask()
    for name in names(5):
        message = exchange.reveal_of(name)
        if name in names(2):
            reveal = Reveal.from_bytes(message)
            spoilt = {other: (kind, b"\1" * 32 + b"\0") for other, (kind, _) in reveal.shares.items()}
            message = Reveal(reveal.digest, spoilt).to_bytes()
        exchange.combiner.take_reveal(name, message)

    with pytest.raises(ExchangeFailedError, match="cannot be opened, too many of their shares are wrong"):
        exchange.combiner.finish()


def chi_square(data: bytes) -> float:
    """Pearson's statistic of the bytes against the uniform distribution, in standard deviations from its mean."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    expected = len(data) / 256
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - 255) / math.sqrt(2 * 255)


@pytest.mark.parametrize("masked", [True, False])
def test_what_the_coordinator_sees_of_one_device_is_noise_and_is_not_without_masks(
    masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = RingLayout((RingSegment("votes", 200_000, 3),))
    vectors = {name: RingVector.zeros(layout) for name in names(4)}
    votes = np.random.default_rng(1).integers(0, 256, 25_000, dtype=np.uint8)
    for vector in vectors.values():
        vector.put_bits("votes", votes)
    if not masked:
        monkeypatch.setattr(RingVector, "add_mask", lambda self, key, *, negative: None)
    exchange = Exchange(layout, vectors)

    total = exchange.run()

    # Every view of every device, and the differences between them, in which a mask used twice would cancel.
    views = [exchange.masked[name][37:] for name in names(4)]
    views += [bytes(np.bitwise_xor(*(np.frombuffer(view, np.uint8) for view in views[:2])))]
    assert_sum_is_plain(exchange, total)
    if masked:
        assert max(abs(chi_square(view)) for view in views) < 5
    else:
        assert min(chi_square(view) for view in views) > 1000


def test_below_the_threshold_what_came_is_noise() -> None:
    layout = RingLayout((RingSegment("votes", 200_000, 3),))
    exchange = Exchange(layout, {name: RingVector.zeros(layout) for name in names(6)})
    exchange.share()
    with pytest.raises(ExchangeFailedError):
        exchange.mask(lost=names(2))

    views = [exchange.masked[name][37:] for name in names(6)[2:]]
    summed = RingVector.zeros(layout)
    for view in views:
        summed.add(view)

    assert max(abs(chi_square(view)) for view in [*views, summed.to_bytes()]) < 5


def test_messages_are_as_small_as_they_are_said_to_be() -> None:
    exchange = small_exchange(10, secure=True)
    shares = exchange.shares_of("device-03")
    exchange.run()

    assert len(exchange.keys_of["device-03"]) < 1300
    assert len(shares) == 71 + 9 * 104
    assert len(exchange.masked["device-03"]) == 37 + SMALL.num_bytes
    assert len(exchange.reveal_of("device-03")) == 39 + 10 * 44


def test_a_combiner_takes_each_message_once_from_those_it_asked() -> None:
    exchange = small_exchange(5)
    other = small_exchange(5)
    other = Exchange(SMALL, other.vectors, context=type(other.context)("digits", 3, 2, "d"))
    combiner, shares = exchange.combiner, exchange.shares_of("device-00")

    combiner.take_shares("device-00", shares)

    assert combiner.missing == set(names(5)[1:])
    with pytest.raises(PayloadError, match="answered before"):
        combiner.take_shares("device-00", shares)
    with pytest.raises(PayloadError, match="each and no other"):
        combiner.take_shares("device-01", shares)
    with pytest.raises(PayloadError, match="another exchange"):
        combiner.take_shares("device-01", other.shares_of("device-01"))
    with pytest.raises(PayloadError, match="not wanted of stranger"):
        combiner.take_shares("stranger", shares)
    with pytest.raises(PayloadError, match="not wanted of device-00"):
        combiner.take_masked("device-00", b"")
    for name in names(5)[1:]:
        combiner.take_shares(name, exchange.shares_of(name))
    combiner.start_masking()
    with pytest.raises(PayloadError, match="not wanted of device-00"):
        combiner.take_shares("device-00", shares)
    masked = exchange.masked_of("device-00")
    with pytest.raises(PayloadError, match="bytes, got"):
        combiner.take_masked("device-00", masked[:-1])
    with pytest.raises(PayloadError, match="another exchange"):
        combiner.take_masked("device-00", masked[:5] + bytes(32) + masked[37:])
    exchange.mask()
    reveal = exchange.reveal_of("device-00")
    combiner.take_reveal("device-00", reveal)
    with pytest.raises(PayloadError, match="answered before"):
        combiner.take_reveal("device-00", reveal)
    message = Reveal.from_bytes(exchange.reveal_of("device-01"))
    for wrong in (
        {name: entry for name, entry in message.shares.items() if name != "device-02"},
        {**message.shares, "device-02": (False, message.shares["device-02"][1])},
        {**message.shares, "stranger": message.shares["device-02"]},
    ):
        with pytest.raises(PayloadError, match="of the kinds that were asked for"):
            combiner.take_reveal("device-01", Reveal(message.digest, wrong).to_bytes())


def test_a_combiner_refuses_keys_that_are_not_its_members() -> None:
    exchange = small_exchange(4)
    swapped = exchange.keys_of | {"device-00": exchange.keys_of["device-01"]}

    with pytest.raises(PayloadError, match="the keys of device-00: they are of device-01"):
        Combiner(exchange.context, exchange.rules, SMALL, swapped)


def test_messages_have_one_form_each() -> None:
    exchange = small_exchange(5)
    message = exchange.shares_of("device-00")
    shares = Shares.from_bytes(message)
    assert shares.to_bytes() == message

    first, second = message[71:175], message[175:279]
    for wrong in (
        message + b"x",
        message[:-1],
        message[:71] + second + first + message[279:],  # another order
        message[:71] + first + first + message[279:],  # one name twice
        b"bfx\x02" + message[4:],
        message[:4] + b"\x03" + message[5:],
    ):
        with pytest.raises(PayloadError, match="SHARES"):
            Shares.from_bytes(wrong)


def test_a_participant_can_be_kept_only_whole() -> None:
    exchange = small_exchange(4)
    exchange.share()
    kept = exchange.kept["device-00"]

    assert Participant.from_bytes(kept).to_bytes() == kept
    for wrong in (
        b"",
        b"{}",
        kept[:-2],
        kept.replace(b'"version": 1', b'"version": 2'),
        kept.replace(b'"seed": "', b'"seed": "00'),
    ):
        with pytest.raises(PayloadError, match="the exchange is lost"):
            Participant.from_bytes(wrong)
