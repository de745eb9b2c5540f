"""Whose keys a device takes: those of certified members, made for this exchange, and known from before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bnncore.errors import ExchangeRefusedError
from bnncore.secure import ExchangeRules, Participant, Trust
from bnncore.secure.crypto import load_signer
from bnncore.secure.messages import Keys
from tests.bnncore.secure.exchange_cases import (
    CONTEXT,
    ME,
    RULES,
    authority,
    fleet,
    keys_for_me,
    new_signer,
    signer,
    trust,
)


def replay_of_a_round(devices: dict[str, Participant]) -> bytes:
    return fleet(context=replace(CONTEXT, round_number=2))["device-00"].keys


def replay_of_an_attempt(devices: dict[str, Participant]) -> bytes:
    return fleet(context=replace(CONTEXT, attempt=2))["device-00"].keys


def of_another_model(devices: dict[str, Participant]) -> bytes:
    return fleet(context=replace(CONTEXT, model_digest="other"))["device-00"].keys


def told_other_rules(devices: dict[str, Participant]) -> bytes:
    return fleet(rules=ExchangeRules(3, 0.51))["device-00"].keys


def of_another_device(devices: dict[str, Participant]) -> bytes:
    return devices["device-01"].keys


def my_own(devices: dict[str, Participant]) -> bytes:
    return devices[ME].keys


def unsigned(devices: dict[str, Participant]) -> bytes:
    return Participant.begin(CONTEXT, RULES, "device-00", None).keys


def of_another_authority(devices: dict[str, Participant]) -> bytes:
    return Participant.begin(CONTEXT, RULES, "device-00", new_signer("device-00", authority("another"))).keys


def with_another_devices_certificate(devices: dict[str, Participant]) -> bytes:
    return Participant.begin(CONTEXT, RULES, "device-00", signer("device-01")).keys


def with_an_expired_certificate(devices: dict[str, Participant]) -> bytes:
    expired = new_signer("device-00", lifetime=timedelta(seconds=-1))
    return Participant.begin(CONTEXT, RULES, "device-00", expired).keys


def with_the_coordinators_certificate(devices: dict[str, Participant]) -> bytes:
    pair = authority().issue_server(("localhost",), timedelta(days=1))
    return Participant.begin(CONTEXT, RULES, "device-00", load_signer(pair.key_pem, pair.chain_pem)).keys


def with_keys_put_in_place_of_the_signed_ones(devices: dict[str, Participant]) -> bytes:
    mine = Keys.from_bytes(Participant.begin(CONTEXT, RULES, "device-00", None).keys)
    return replace(Keys.from_bytes(devices["device-00"].keys), channel_key=mine.channel_key).to_bytes()


def with_keys_of_anothers(devices: dict[str, Participant]) -> bytes:
    other = Keys.from_bytes(devices["device-01"].keys)
    keys = replace(Keys.from_bytes(devices["device-00"].keys), mask_key=other.mask_key)
    return replace(keys, signature=signer("device-00").sign(keys.signed_bytes())).to_bytes()


def with_keys_of_mine(devices: dict[str, Participant]) -> bytes:
    own = Keys.from_bytes(devices[ME].keys)
    keys = replace(Keys.from_bytes(devices["device-00"].keys), channel_key=own.channel_key)
    return replace(keys, signature=signer("device-00").sign(keys.signed_bytes())).to_bytes()


def with_one_key_for_two_purposes(devices: dict[str, Participant]) -> bytes:
    keys = Keys.from_bytes(devices["device-00"].keys)
    keys = replace(keys, channel_key=keys.mask_key)
    return replace(keys, signature=signer("device-00").sign(keys.signed_bytes())).to_bytes()


def with_a_point_of_small_order(devices: dict[str, Participant]) -> bytes:
    keys = replace(Keys.from_bytes(devices["device-00"].keys), channel_key=bytes(32))
    return replace(keys, signature=signer("device-00").sign(keys.signed_bytes())).to_bytes()


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (replay_of_a_round, "another exchange: job digits, round 2"),
        (replay_of_an_attempt, r"another exchange: .* attempt 2"),
        (of_another_model, "another exchange"),
        (told_other_rules, "told other rules"),
        (of_another_device, "they are of device-01"),
        (my_own, "they are of device-02"),
        (unsigned, "not signed"),
        (of_another_authority, "none of a device|not of this fleet"),
        (with_another_devices_certificate, "of another device"),
        (with_an_expired_certificate, "not today"),
        (with_the_coordinators_certificate, "of another device"),
        (with_keys_put_in_place_of_the_signed_ones, "not signed with the key of its certificate"),
        (with_keys_of_anothers, "have a key in common"),
        (with_keys_of_mine, "device-00 and device-02 have a key in common"),
        (with_one_key_for_two_purposes, "one key for two purposes"),
        (with_a_point_of_small_order, "agrees on nothing secret"),
    ],
)
def test_keys_that_are_not_a_members_of_this_exchange_are_refused(
    lie: Callable[[dict[str, Participant]], bytes], reason: str
) -> None:
    devices = fleet()
    keys = keys_for_me(devices)

    with pytest.raises(ExchangeRefusedError, match=reason) as refusal:
        devices[ME].share(keys | {"device-00": lie(devices)}, 5, trust())

    assert "device-00" in str(refusal.value)
    devices[ME].share(keys, 5, trust())  # the right ones are still taken


def test_one_certified_key_under_two_names_is_refused() -> None:
    devices = fleet()
    shared = new_signer("device-00")

    def with_key(name: str) -> bytes:
        key = x509.load_der_x509_certificate(shared.certificate_der).public_key()
        certificate = authority().certify(name, key, timedelta(days=1))  # type: ignore[arg-type]
        twin = replace(shared, certificate_der=certificate.public_bytes(Encoding.DER))
        return Participant.begin(CONTEXT, RULES, name, twin).keys

    twins = {name: with_key(name) for name in ("device-00", "device-01")}
    with pytest.raises(ExchangeRefusedError, match="key in common, so one of them stands for both"):
        devices[ME].share(keys_for_me(devices) | twins, 5, trust())


def test_a_key_that_changed_since_it_was_seen_is_refused() -> None:
    devices = fleet()
    devices[ME].share(keys_for_me(devices), 5, trust())
    pins = devices[ME].identities
    later = replace(CONTEXT, round_number=4)
    enrolled_anew = Participant.begin(later, RULES, "device-00", new_signer("device-00"))
    next_round = fleet(context=later)

    with pytest.raises(ExchangeRefusedError, match=r"another key than before.*peers forget device-00"):
        next_round[ME].share(
            keys_for_me(next_round) | {"device-00": enrolled_anew.keys}, 5, Trust(authority().pem, pins)
        )

    assert set(pins) == {"device-00", "device-01", "device-03", "device-04"}
    next_round[ME].share(keys_for_me(next_round), 5, Trust(authority().pem, pins))
