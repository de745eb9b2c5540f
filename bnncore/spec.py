"""ModelSpec: the description of a network that every part of bitfleet reads.

A spec says which layers follow each other and how wide they are; it holds no weight. Its canonical JSON is the same
bytes everywhere, so its SHA-256 names the network: an update for another network is recognised by that digest.
A spec can only exist valid: the constructor checks everything that ``from_json`` checks.

Layers are in ``bnncore.layers``. A network is a chain of binary blocks (``bnncore.blocks``) or a residual network
(``bnncore.residual``). The input is uint8 of any shape, read as ``x = 2 u - 255``: flattened by a dense layer, as
height x width x channels by a convolution.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from bnncore.blocks import Block, build_blocks
from bnncore.errors import SpecError
from bnncore.layers import (
    LAYER_KINDS,
    Layer,
    Residual,
    check_layer,
    check_name,
    check_size,
)
from bnncore.residual import ResidualNetwork, build_residual, is_residual

__all__ = ["ModelSpec", "TensorSpec"]

FORMAT = "bitfleet.model"
VERSION = 1
RESIDUAL_VERSION = 2
"""Of residual networks, so that a bitfleet that knows none says that it must be upgraded."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a state: its name, its shape, and what it is."""

    name: str
    shape: tuple[int, ...]
    role: Literal["weight", "real_weight", "bias", "beta", "mean", "mean_abs_dev"]

    @property
    def is_statistic(self) -> bool:
        """Running statistics travel from a device to the coordinator, not back."""
        return self.role in ("mean", "mean_abs_dev")


@dataclass(frozen=True)
class ModelSpec:
    """A checked network description.

    Attributes:
      name: what the network is called; part of the digest.
      input_shape: shape of one sample, e.g. (28, 28).
      layers: in the order of the forward pass.

    Raises:
      SpecError: a name, a width or the order of the layers is not valid; the message names the layers.
    """

    name: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        check_name(self.name, "the model")
        if not 1 <= len(self.input_shape) <= 8:
            raise SpecError(f"input_shape must have 1 to 8 dimensions, got {list(self.input_shape)}")
        for size in self.input_shape:
            check_size(size, "input_shape")
        check_size(self.input_features, "the product of input_shape")
        self._check_layers(self.layers, "layers", set())
        _ = self.residual if is_residual(self.layers) else self.blocks  # raises where layers do not chain

    def _check_layers(self, layers: tuple[Layer, ...], where: str, seen: set[str]) -> None:
        for position, layer in enumerate(layers):
            place = f"{where}[{position}]"
            check_layer(layer, place)
            if layer.name in seen:
                raise SpecError(f"every layer needs its own name; {layer.name!r} is used twice ({place})")
            seen.add(layer.name)
            if isinstance(layer, Residual):
                self._check_layers(layer.body, f"{place}.body", seen)
                self._check_layers(layer.shortcut, f"{place}.shortcut", seen)

    @property
    def input_features(self) -> int:
        """Numbers in one sample."""
        return math.prod(self.input_shape)

    @property
    def classes(self) -> int:
        """Classes told apart; labels are 0 to classes - 1."""
        return self.residual.head.dense.out_features if self.residual else self.blocks[-1].out_channels

    @cached_property
    def residual(self) -> ResidualNetwork | None:
        """The parts of a residual network; None for a chain of blocks."""
        return build_residual(self.layers, self.input_features) if is_residual(self.layers) else None

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The layers of a chain in the groups that the engines work on, in order.

        Raises:
          SpecError: it is a residual network, which what was asked for cannot handle.
        """
        if is_residual(self.layers):
            raise SpecError(
                f"model {self.name!r} is a residual network, and this needs a chain of binary blocks. Training under "
                "the presets bitfleet and standard, evaluation, bitfleet memory and bench take both; take mlp, cnv or "
                "binarynet here"
            )
        return build_blocks(self.layers, self.input_features)

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """All tensors of a state, in the one order that digests and payloads use."""
        if self.residual is not None:
            return tuple(_residual_tensors(self.residual))
        found: list[TensorSpec] = []
        for block in self.blocks:
            found.append(TensorSpec(f"{block.linear}.weight", block.weight_shape, "weight"))
            found += _norm_tensors(block.norm, block.out_channels)
        return tuple(found)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of a state by name, in order."""
        return {tensor.name: tensor.shape for tensor in self.tensors}

    @property
    def num_binary_weights(self) -> int:
        """Weights that are +1 or -1 in use."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors if tensor.role == "weight")

    @property
    def num_values(self) -> int:
        """Values of all tensors of the network's state, statistics included."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (lower-case hex) of the canonical JSON: the network's name on the wire."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return {
            "format": FORMAT,
            "version": RESIDUAL_VERSION if is_residual(self.layers) else VERSION,
            "name": self.name,
            "input_shape": list(self.input_shape),
            "layers": [_layer_to_dict(layer) for layer in self.layers],
        }

    def to_json(self) -> str:
        """Canonical JSON: keys sorted, no spaces, so that equal specs are equal bytes."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelSpec:
        """Read a spec from JSON.

        Raises:
          SpecError: the text is no JSON, or no valid spec; the message says which part and why.
        """
        try:
            value = json.loads(text, object_pairs_hook=_object_without_duplicates)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"a model spec must be JSON: {error}") from error
        return cls.from_dict(value)

    @classmethod
    def from_dict(cls, value: object) -> ModelSpec:
        """Read a spec from JSON values (see ``to_dict``).

        Raises:
          SpecError: a key is missing or unknown, or a value is not valid.
        """
        keys = {"format", "version", "name", "input_shape", "layers"}
        fields = _check_keys(value, keys, "the model spec")
        if fields["format"] != FORMAT:
            raise SpecError(f"a model spec has format {FORMAT!r}, got {fields['format']!r}")
        version = fields["version"]
        if version not in (VERSION, RESIDUAL_VERSION) or isinstance(version, bool):
            raise SpecError(
                f"this bitfleet reads versions {VERSION} and {RESIDUAL_VERSION} of the model spec, got {version!r}; "
                "upgrade it with: pip install --upgrade bitfleet"
            )
        if not isinstance(fields["input_shape"], list):
            raise SpecError(f"input_shape must be a list, got {type(fields['input_shape']).__name__}")
        spec = cls(fields["name"], tuple(fields["input_shape"]), _layers_from_list(fields["layers"], "layers"))
        if version != spec.to_dict()["version"]:
            raise SpecError(
                f"version {RESIDUAL_VERSION} of the model spec is of residual networks and {VERSION} of all others, "
                f"got {version} for model {spec.name!r}"
            )
        return spec


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a key occurs twice in one object: {sorted(key for key, _ in pairs)}")
    return found


def _norm_tensors(name: str, features: int) -> list[TensorSpec]:
    shape = (features,)
    return [
        TensorSpec(f"{name}.beta", shape, "beta"),
        TensorSpec(f"{name}.mean", shape, "mean"),
        TensorSpec(f"{name}.mean_abs_dev", shape, "mean_abs_dev"),
    ]


def _residual_tensors(network: ResidualNetwork) -> Iterator[TensorSpec]:
    stem, dense = network.stem, network.head.dense
    yield TensorSpec(f"{stem.conv.name}.weight", stem.conv.weight_shape, "real_weight")
    for norm in (stem.norm, stem.second_norm):
        if norm is not None:
            yield from _norm_tensors(norm.name, norm.features)
    for unit in network.units:
        yield TensorSpec(f"{unit.conv.name}.weight", unit.conv.weight_shape, "weight")
        yield from _norm_tensors(unit.norm.name, unit.norm.features)
        if unit.shortcut is not None:
            conv, norm = unit.shortcut.conv, unit.shortcut.norm
            yield TensorSpec(f"{conv.name}.weight", conv.weight_shape, "real_weight")
            yield from _norm_tensors(norm.name, norm.features)
    yield TensorSpec(f"{dense.name}.weight", (dense.out_features, dense.in_features), "real_weight")
    yield TensorSpec(f"{dense.name}.bias", (dense.out_features,), "bias")


def _layer_to_dict(layer: Layer) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": layer.kind}
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        if value != field.default:
            found[field.name] = [_layer_to_dict(inner) for inner in value] if isinstance(value, tuple) else value
    return found


def _layers_from_list(value: object, where: str) -> tuple[Layer, ...]:
    if not isinstance(value, list):
        raise SpecError(f"{where} must be a list, got {type(value).__name__}")
    return tuple(_layer_from_dict(layer, f"{where}[{position}]") for position, layer in enumerate(value))


def _layer_from_dict(value: object, where: str) -> Layer:
    kind = value.get("kind") if isinstance(value, dict) else None
    kinds = LAYER_KINDS if "." not in where else {k: v for k, v in LAYER_KINDS.items() if v is not Residual}
    layer_type = kinds.get(kind) if isinstance(kind, str) else None
    if layer_type is None:
        raise SpecError(f"{where} must have a kind of {sorted(kinds)}, got {kind!r}")
    names = {field.name for field in dataclasses.fields(layer_type)}
    optional = {f.name for f in dataclasses.fields(layer_type) if f.default is not dataclasses.MISSING}
    fields = _check_keys(value, names | {"kind"}, f"{where} ({kind})", optional)
    values = {name: fields[name] for name in names if name in fields}
    for name in {"body", "shortcut"} & set(values):
        values[name] = _layers_from_list(values[name], f"{where}.{name}")
    return layer_type(**values)


def _check_keys(value: object, keys: set[str], where: str, optional: AbstractSet[str] = frozenset()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecError(f"{where} must be a JSON object, got {type(value).__name__}")
    missing, unknown = sorted(keys - optional - set(value)), sorted(set(value) - keys)
    if missing or unknown:
        raise SpecError(
            f"{where} must have exactly the keys {sorted(keys - optional)}"
            f"{f' and may have {sorted(optional)}' if optional else ''}; missing {missing}, unknown {unknown}"
        )
    return value
