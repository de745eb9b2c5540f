"""Steps and feedback: both ends hold the same bytes, and nothing that could not be said is lost."""

import numpy as np
import pytest

from bnncore.codec import SignTensor, get_codec, get_difference_codec
from bnncore.engine import Engine
from bnncore.errors import ConfigurationError
from bnncore.federated.feedback import tell_difference
from bnncore.federated.replica import apply_step, follow_steps, make_step, model_codec
from bnncore.optimizer import resolve_preset
from bnncore.spec import ModelSpec
from bnncore.state import State, to_float32, without_statistics
from bnncore.zoo import build

CODECS = ["sign", "flips"]


@pytest.fixture
def spec() -> ModelSpec:
    return build("mlp", input_shape=(5, 5), widths=(24, 17), classes=3)


def initial(spec: ModelSpec, seed: int = 1) -> State:
    engine = Engine(spec, batch_size=1, preset=resolve_preset("bitfleet"))
    engine.initialise(seed)
    return engine.state()


def moved(state: State, seed: int, size: float) -> State:
    """A master that has wandered off."""
    rng = np.random.default_rng(seed)
    return {
        name: np.clip(to_float32(array) + rng.normal(0, size, array.shape), -1, 1).astype(np.float32)
        for name, array in state.items()
    }


@pytest.mark.parametrize("name", CODECS)
def test_a_holder_of_the_model_arrives_at_the_coordinators_bytes(spec: ModelSpec, name: str) -> None:
    codec, whole = get_difference_codec(name), model_codec(name)
    replica = without_statistics(initial(spec))
    first = model = whole.encode(spec, replica, kind="model")
    steps: list[bytes] = []
    master: State = {key: to_float32(array) for key, array in replica.items()}
    for number in range(5):
        master = moved(master, number, 0.05)
        step = make_step(spec, master, replica, codec)
        replica = apply_step(replica, step)
        model = whole.encode(spec, replica, kind="model")
        steps.append(codec.encode(spec, step, kind="step"))

    assert follow_steps(spec, first, steps, name) == model
    assert follow_steps(spec, first, [], name) is first


@pytest.mark.parametrize("name", CODECS)
def test_a_replica_comes_close_to_a_master_that_rests(spec: ModelSpec, name: str) -> None:
    codec = get_difference_codec(name)
    replica = without_statistics(initial(spec))
    master = moved(replica, 7, 0.2)
    before = np.abs(master["dense1.weight"] - to_float32(replica["dense1.weight"])).mean()

    for _ in range(200):
        replica = apply_step(replica, make_step(spec, master, replica, codec))

    after = np.abs(master["dense1.weight"] - to_float32(replica["dense1.weight"])).mean()
    assert after < before / 10
    # beta travels as a float16 difference: what is left shrinks by 2^-11 a step
    assert np.abs(master["norm1.beta"] - replica["norm1.beta"]).max() < 1e-6


@pytest.mark.parametrize("name", CODECS)
def test_what_is_told_and_what_is_owed_add_up_to_what_was_learnt(spec: ModelSpec, name: str) -> None:
    base, codec, rounds = initial(spec), get_difference_codec(name), 8
    rng = np.random.default_rng(3)
    told = {key: np.zeros(array.shape) for key, array in base.items() if array.dtype == np.int8}
    learnt = {key: np.zeros(array.shape) for key in told for array in [base[key]]}
    owed: State | None = None
    for _ in range(rounds):
        trained = dict(base)
        for key in told:
            change = rng.integers(-6, 7, base[key].shape)
            trained[key] = np.clip(base[key] + change, -127, 127).astype(np.int8)
            learnt[key] += trained[key].astype(int) - base[key]
        difference, owed = tell_difference(spec, trained, base, owed, codec)
        for key in told:
            signs = difference[key]
            assert isinstance(signs, SignTensor)
            told[key] += signs.dense() / 256

    assert owed is not None
    for key in told:
        # what is owed is rounded to whole steps each time
        assert np.abs(told[key] + owed[key] - learnt[key]).max() <= rounds / 2


def test_a_codec_of_states_makes_no_steps() -> None:
    with pytest.raises(ConfigurationError, match="writes states"):
        get_difference_codec("int8")
    assert model_codec("float32") is get_codec("float32")
    assert model_codec("sign") is get_codec("int8")
