"""ModelSpec: the description of a network that every part of bitfleet reads.

A spec says which layers follow each other and how wide they are; it holds no weight. Its canonical JSON is the same
bytes everywhere, so its SHA-256 names the network: an update for another network is recognised by that digest.
A spec can only exist valid: the constructor checks everything that ``from_json`` checks.

Layers are in ``bnncore.layers``, the order in which they may stand in ``bnncore.blocks``. The input is uint8 of any
shape, read as ``x = 2 u - 255``: flattened by a dense layer, as height x width x channels by a convolution.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from bnncore.blocks import Block, build_blocks
from bnncore.errors import SpecError
from bnncore.layers import LAYER_KINDS, Layer, check_layer, check_name, check_size

__all__ = ["ModelSpec", "TensorSpec"]

FORMAT = "bitfleet.model"
VERSION = 1


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a state: its name, its shape, and what it is."""

    name: str
    shape: tuple[int, ...]
    role: Literal["weight", "beta", "mean", "mean_abs_dev"]

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
        seen: set[str] = set()
        for position, layer in enumerate(self.layers):
            check_layer(layer, position)
            if layer.name in seen:
                raise SpecError(f"every layer needs its own name; {layer.name!r} is used twice (layers[{position}])")
            seen.add(layer.name)
        _ = self.blocks  # raises where layers do not chain

    @property
    def input_features(self) -> int:
        """Numbers in one sample."""
        return math.prod(self.input_shape)

    @property
    def classes(self) -> int:
        """Classes told apart; labels are 0 to classes - 1."""
        return self.blocks[-1].out_channels

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The layers in the groups that the engines work on, in order."""
        return build_blocks(self.layers, self.input_features)

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """All tensors of a state, in the one order that digests and payloads use."""
        found: list[TensorSpec] = []
        for block in self.blocks:
            out = (block.out_channels,)
            found.append(TensorSpec(f"{block.linear}.weight", block.weight_shape, "weight"))
            found.append(TensorSpec(f"{block.norm}.beta", out, "beta"))
            found.append(TensorSpec(f"{block.norm}.mean", out, "mean"))
            found.append(TensorSpec(f"{block.norm}.mean_abs_dev", out, "mean_abs_dev"))
        return tuple(found)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of a state by name, in order."""
        return {tensor.name: tensor.shape for tensor in self.tensors}

    @property
    def num_binary_weights(self) -> int:
        """Weights that are +1 or -1 in use."""
        return sum(block.num_weights for block in self.blocks)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (lower-case hex) of the canonical JSON: the network's name on the wire."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "input_shape": list(self.input_shape),
            "layers": [{"kind": layer.kind, **dataclasses.asdict(layer)} for layer in self.layers],
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
        if fields["version"] != VERSION or isinstance(fields["version"], bool):
            raise SpecError(
                f"this bitfleet reads version {VERSION} of the model spec, got {fields['version']!r}; "
                "upgrade it with: pip install --upgrade bitfleet"
            )
        for key in ("input_shape", "layers"):
            if not isinstance(fields[key], list):
                raise SpecError(f"{key} must be a list, got {type(fields[key]).__name__}")
        layers = tuple(_layer_from_dict(layer, position) for position, layer in enumerate(fields["layers"]))
        return cls(fields["name"], tuple(fields["input_shape"]), layers)


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a key occurs twice in one object: {sorted(key for key, _ in pairs)}")
    return found


def _layer_from_dict(value: object, position: int) -> Layer:
    where = f"layers[{position}]"
    kind = value.get("kind") if isinstance(value, dict) else None
    layer_type = LAYER_KINDS.get(kind) if isinstance(kind, str) else None
    if layer_type is None:
        raise SpecError(f"{where} must have a kind of {sorted(LAYER_KINDS)}, got {kind!r}")
    names = {field.name for field in dataclasses.fields(layer_type)}
    fields = _check_keys(value, names | {"kind"}, f"{where} ({kind})")
    return layer_type(**{name: fields[name] for name in names})


def _check_keys(value: object, keys: set[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecError(f"{where} must be a JSON object, got {type(value).__name__}")
    if set(value) != keys:
        missing, unknown = sorted(keys - set(value)), sorted(set(value) - keys)
        raise SpecError(f"{where} must have exactly the keys {sorted(keys)}; missing {missing}, unknown {unknown}")
    return value
