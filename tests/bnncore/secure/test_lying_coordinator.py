"""What a device refuses: a coordinator that asks for more than a sum."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bnncore.errors import ExchangeRefusedError, PayloadError, TaskDeclinedError
from bnncore.secure import ExchangeRules, Participant, RingLayout, RingSegment, RingVector
from bnncore.secure.messages import Reveal
from bnncore.secure.shamir import join
from tests.bnncore.secure.exchange_cases import (
    CONTEXT,
    ME,
    RULES,
    SEED,
    Exchange,
    fleet,
    keys_for_me,
    names,
    random_vectors,
    signer,
    trust,
)

LAYOUT = RingLayout((RingSegment("votes", 100, 3),))


def exchange_after(step: str, number: int = 6, rules: ExchangeRules = RULES) -> Exchange:
    exchange = Exchange(LAYOUT, random_vectors(LAYOUT, names(number), np.random.default_rng(1)), rules, secure=True)
    if step in ("shares", "masked"):
        exchange.share()
    if step == "masked":
        for name in names(number):
            exchange.combiner.take_masked(name, exchange.masked_of(name))
    return exchange


def me(exchange: Exchange) -> Participant:
    return Participant.from_bytes(exchange.kept[ME])


def test_a_refusal_declines_the_task_and_says_which_exchange() -> None:
    devices = fleet()

    with pytest.raises(TaskDeclinedError, match=r"refused \(job digits, round 3, attempt 1\)"):
        devices[ME].share({}, 5, trust())


@pytest.mark.parametrize("threshold", [0.5, 0.1, 0.0, -1.0, 1.5, float("nan")])
def test_a_threshold_that_two_groups_reach_at_once_is_refused(threshold: float) -> None:
    with pytest.raises(ExchangeRefusedError, match="both kinds"):
        Participant.begin(CONTEXT, ExchangeRules(3, threshold), ME, signer(ME))


@pytest.mark.parametrize("rules", [ExchangeRules(2), ExchangeRules(0), ExchangeRules(3, 0.7, 1)])
def test_a_promise_of_too_few_is_refused(rules: ExchangeRules) -> None:
    with pytest.raises(ExchangeRefusedError, match="at least"):
        Participant.begin(CONTEXT, rules, ME, signer(ME))


def test_more_than_half_of_the_holders_are_needed_whatever_their_number() -> None:
    for threshold in (0.5000001, 0.6, 2 / 3, 0.99, 1.0):
        for holders in range(1, 300):
            assert holders < 2 * ExchangeRules(3, threshold).shares_needed(holders) <= 2 * holders


def test_a_cohort_smaller_than_promised_is_refused() -> None:
    rules = ExchangeRules(min_members=5)
    devices = fleet(4, rules)

    with pytest.raises(ExchangeRefusedError, match="4 members; 5 were promised"):
        devices[ME].share(keys_for_me(devices), 4, trust())
    with pytest.raises(ExchangeRefusedError, match="5 members were announced, with keys of 3 others"):
        devices[ME].share(keys_for_me(devices), 5, trust())


def test_a_cohort_that_shrinks_below_the_promise_is_refused_at_every_step() -> None:
    rules = ExchangeRules(5, 0.501)
    exchange = exchange_after("shares", 6, rules)
    sealed = exchange.combiner.sealed_for(ME)
    few = {name: sealed[name] for name in list(sealed)[:3]}
    vector = RingVector.zeros(LAYOUT)

    with pytest.raises(ExchangeRefusedError, match=r"only 4 members sent shares, .*; 5 are needed"):
        me(exchange).mask(few, vector)
    assert not vector.data.any()

    exchange = exchange_after("masked", 6, rules)
    survived = {name: name in (ME, *names(6)[:2], "device-05") for name in names(6)}
    with pytest.raises(ExchangeRefusedError, match=r"only 4 members survived, .*; 5 are needed"):
        me(exchange).reveal(survived)


def test_fewer_survivors_than_open_a_secret_are_refused() -> None:
    # Each is told that other members were lost, so that a coordinator could have the mask keys of nearly all.
    exchange = exchange_after("masked")
    survived = {name: name in (ME, "device-00", "device-01", "device-03") for name in names(6)}

    with pytest.raises(ExchangeRefusedError, match=r"only 4 members survived, .*; 5 are needed"):
        me(exchange).reveal(survived)


def test_a_device_that_is_named_as_its_own_neighbour_refuses() -> None:
    devices = fleet()

    with pytest.raises(ExchangeRefusedError, match="its own neighbour"):
        devices[ME].share({name: device.keys for name, device in devices.items()}, 6, trust())


def test_neighbours_that_the_graph_does_not_give_are_refused() -> None:
    rules = ExchangeRules(3, 2 / 3, 4)
    exchange = exchange_after("keys", 12, rules)
    right, positions = exchange.combiner.keys_for(ME), exchange.combiner.positions
    places = {name: positions[name] for name in right}
    stranger = next(name for name in names(12) if name not in right and name != ME)
    one = next(iter(right))

    def share(keys: dict[str, bytes], places: dict[str, int], seed: bytes = SEED) -> bytes:
        return me(exchange).share(keys, 12, trust(), seed, places)

    chosen = {name: key for name, key in right.items() if name != one} | {stranger: exchange.keys_of[stranger]}
    with pytest.raises(ExchangeRefusedError, match="not those that the graph"):
        share(chosen, {name: positions[name] for name in chosen})
    with pytest.raises(ExchangeRefusedError, match="not those that the graph"):
        share({name: key for name, key in right.items() if name != one}, {n: p for n, p in places.items() if n != one})
    with pytest.raises(ExchangeRefusedError, match="not those that the graph"):
        share(right, places, bytes(32))
    with pytest.raises(ExchangeRefusedError, match="place of its own"):
        share(right, places | {one: places[next(name for name in right if name != one)]})
    with pytest.raises(ExchangeRefusedError, match="place of its own"):
        share(right, {})
    with pytest.raises(ExchangeRefusedError, match="place of its own"):
        share(right, places, b"")
    # Two neighbours that stand in each other's place.
    first, second = sorted(right)[:2]
    with pytest.raises(ExchangeRefusedError, match="not those that the graph"):
        share(right, places | {first: places[second], second: places[first]})
    share(right, places)


def test_other_members_after_the_shares_were_made_are_refused() -> None:
    devices = fleet()
    first = devices[ME].share(keys_for_me(devices), 5, trust())
    fewer = {name: key for name, key in keys_for_me(devices).items() if name != "device-00"}

    with pytest.raises(ExchangeRefusedError, match="SHARES a second time"):
        devices[ME].share(fewer, 4, trust())

    assert devices[ME].share(keys_for_me(devices), 5, trust()) == first


def test_steps_out_of_order_are_refused() -> None:
    devices = fleet()

    with pytest.raises(ExchangeRefusedError, match="MASKED before SHARES"):
        devices[ME].mask({}, RingVector.zeros(LAYOUT))
    with pytest.raises(ExchangeRefusedError, match="REVEAL before MASKED"):
        devices[ME].reveal({})
    with pytest.raises(ExchangeRefusedError, match="REVEAL before MASKED"):
        me(exchange_after("shares")).reveal(dict.fromkeys(names(6), True))


def sent_back(exchange: Exchange, sealed: dict[str, bytes]) -> dict[str, bytes]:
    mine = exchange.combiner.sealed_for("device-00")[ME]
    return sealed | {"device-00": mine}


def swapped(exchange: Exchange, sealed: dict[str, bytes]) -> dict[str, bytes]:
    return sealed | {"device-00": sealed["device-01"]}


def of_another_holder(exchange: Exchange, sealed: dict[str, bytes]) -> dict[str, bytes]:
    return sealed | {"device-00": exchange.combiner.sealed_for("device-01")["device-00"]}


def changed(exchange: Exchange, sealed: dict[str, bytes]) -> dict[str, bytes]:
    return sealed | {"device-00": sealed["device-00"][:-1] + bytes([sealed["device-00"][-1] ^ 1])}


def cut(exchange: Exchange, sealed: dict[str, bytes]) -> dict[str, bytes]:
    return sealed | {"device-00": sealed["device-00"][:-1]}


@pytest.mark.parametrize("lie", [sent_back, swapped, of_another_holder, changed, cut])
def test_shares_that_are_not_sealed_by_that_member_for_this_device_are_refused(
    lie: Callable[[Exchange, dict[str, bytes]], dict[str, bytes]],
) -> None:
    exchange = exchange_after("shares")
    device, vector = me(exchange), RingVector.zeros(LAYOUT)
    sealed = exchange.combiner.sealed_for(ME)

    with pytest.raises(ExchangeRefusedError, match="shares said to be device-00's"):
        device.mask(lie(exchange, sealed), vector)

    assert not vector.data.any()
    device.mask(sealed, vector)


def test_shares_of_strangers_are_refused() -> None:
    exchange = exchange_after("shares")
    sealed = exchange.combiner.sealed_for(ME)

    with pytest.raises(ExchangeRefusedError, match="unknown members sent shares: stranger"):
        me(exchange).mask(sealed | {"stranger": sealed["device-00"]}, RingVector.zeros(LAYOUT))


def test_masking_again_with_another_vector_or_others_is_refused() -> None:
    exchange = exchange_after("masked")
    device, sealed = me(exchange), exchange.combiner.sealed_for(ME)
    other = RingVector.zeros(LAYOUT)
    again = RingVector(LAYOUT, exchange.vectors[ME].data.copy())

    with pytest.raises(ExchangeRefusedError, match="MASKED a second time"):
        device.mask(sealed, other)
    with pytest.raises(ExchangeRefusedError, match="MASKED a second time"):
        device.mask({name: sealed[name] for name in list(sealed)[1:]}, again)

    assert not other.data.any()
    assert device.mask(sealed, again) == exchange.masked[ME]


def test_what_is_revealed_once_is_not_revealed_otherwise() -> None:
    exchange = exchange_after("masked", 7, ExchangeRules(3, 0.501))
    device = me(exchange)
    survived = {name: name != "device-00" for name in names(7)}
    before = device.has_revealed
    first = device.reveal(survived)
    assert (before, device.has_revealed) == (False, True)
    device = Participant.from_bytes(device.to_bytes())

    for other in (dict.fromkeys(names(7), True), survived | {"device-01": False}):
        with pytest.raises(ExchangeRefusedError, match="REVEAL a second time"):
            device.reveal(other)

    assert device.reveal(survived) == first


def test_a_device_reveals_no_mask_key_of_its_own_nor_shares_of_others_than_it_masked_with() -> None:
    exchange = exchange_after("masked")
    survived = dict.fromkeys(names(6), True)

    with pytest.raises(ExchangeRefusedError, match="this device was lost, which has sent"):
        me(exchange).reveal(survived | {ME: False})
    with pytest.raises(ExchangeRefusedError, match="shares of stranger and not of nobody"):
        me(exchange).reveal(survived | {"stranger": True})
    with pytest.raises(ExchangeRefusedError, match="shares of nobody and not of device-04"):
        me(exchange).reveal({name: True for name in names(6) if name != "device-04"})


def test_no_two_stories_give_both_kinds_of_a_devices_secrets() -> None:
    # The coordinator tells some devices that device-00 survived and the others that it was lost.
    exchange = exchange_after("masked", 7, ExchangeRules(3, 0.501))
    secrets = Participant.from_bytes(exchange.kept["device-00"]).state.secrets
    others = names(7)[1:]

    for number in range(len(others) + 1):
        told_lost = set(others[:number])
        seed_shares: dict[int, bytes] = {}
        mask_shares: dict[int, bytes] = {}
        for place, name in enumerate(names(7), start=1):
            device = Participant.from_bytes(exchange.kept[name])
            story = {other: other != "device-00" or name not in told_lost for other in names(7)}
            _, share = Reveal.from_bytes(device.reveal(story)).shares["device-00"]
            (mask_shares if name in told_lost else seed_shares)[place] = share

        assert not (_opens(seed_shares, secrets.seed) and _opens(mask_shares, secrets.mask))
        assert _opens(seed_shares, secrets.seed) == (len(seed_shares) >= 4)


def _opens(shares: dict[int, bytes], secret: bytes) -> bool:
    try:
        return bool(shares) and join(shares) == secret
    except PayloadError:
        return False


def test_devices_that_are_told_of_different_maskers_add_up_to_noise() -> None:
    rules = ExchangeRules(3, 0.501)
    exchange = exchange_after("shares", 6, rules)
    for name in names(6)[:5]:
        sealed = exchange.combiner.sealed_for(name)
        if name == "device-04":
            del sealed["device-05"]
        message = exchange.step(name, lambda d, s=sealed: d.mask(s, RingVector.zeros(LAYOUT)))  # type: ignore[misc]
        exchange.combiner.take_masked(name, message)
    exchange.combiner.start_reveal()
    for name in names(6)[:4]:
        exchange.combiner.take_reveal(name, exchange.reveal_of(name))

    total = exchange.combiner.finish()

    assert np.count_nonzero(total.get("votes")) > 50
