"""ModelSpec: the description of a network that every part of bitfleet reads.

A spec says which layers follow each other and how wide they are; it holds no weight. Its canonical JSON is the same
bytes everywhere, so its SHA-256 names the network: an update for another network is recognised by that digest.
A spec can only exist valid: the constructor checks everything that ``from_json`` checks.

Today's networks are blocks of *binary_dense, l1_batch_norm, sign*; the last block ends in *softmax_cross_entropy*
instead of *sign*. The input is uint8 of any shape, flattened by the first layer and read as ``x = 2 u - 255``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from bnncore.errors import SpecError

__all__ = [
    "LAYER_KINDS",
    "BinaryDense",
    "DenseBlock",
    "L1BatchNorm",
    "Layer",
    "ModelSpec",
    "Sign",
    "SoftmaxCrossEntropy",
    "TensorSpec",
]

FORMAT = "bitfleet.model"
VERSION = 1
MAX_FEATURES = 1 << 20
"""Widest layer or input. 255 * 2**20 still fits an int32, so no pre-activation of a first layer can overflow."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class BinaryDense:
    """Weights of +1 and -1: ``y = x @ sign(w).T`` with w [out_features, in_features]. No bias."""

    kind: ClassVar[str] = "binary_dense"
    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class L1BatchNorm:
    """``(y - mean) / mean_abs_dev + beta`` for each feature; no learnt scale."""

    kind: ClassVar[str] = "l1_batch_norm"
    name: str
    features: int


@dataclass(frozen=True)
class Sign:
    """Activation: +1 where the input is not negative, -1 elsewhere."""

    kind: ClassVar[str] = "sign"
    name: str


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """The loss, in nats; its input is one number a class."""

    kind: ClassVar[str] = "softmax_cross_entropy"
    name: str
    classes: int


Layer = BinaryDense | L1BatchNorm | Sign | SoftmaxCrossEntropy
LAYER_KINDS: dict[str, type[Layer]] = {
    layer.kind: layer for layer in (BinaryDense, L1BatchNorm, Sign, SoftmaxCrossEntropy)
}


@dataclass(frozen=True)
class DenseBlock:
    """A dense layer with its batch norm, as the engine sees them."""

    dense: str
    norm: str
    in_features: int
    out_features: int
    is_first: bool
    is_last: bool


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
        _check_name(self.name, "the model")
        if not 1 <= len(self.input_shape) <= 8:
            raise SpecError(f"input_shape must have 1 to 8 dimensions, got {list(self.input_shape)}")
        for size in self.input_shape:
            _check_count(size, "input_shape")
        _check_count(self.input_features, "the product of input_shape")
        _check_layers(self.layers)
        _check_widths(self.blocks, self)

    @property
    def input_features(self) -> int:
        """Numbers in one sample."""
        return math.prod(self.input_shape)

    @property
    def classes(self) -> int:
        """Classes told apart; labels are 0 to classes - 1."""
        return self.blocks[-1].out_features

    @cached_property
    def blocks(self) -> tuple[DenseBlock, ...]:
        """The dense layers with their batch norms, in order."""
        pairs = list(zip(self.layers[0::3], self.layers[1::3], strict=True))
        return tuple(
            DenseBlock(dense.name, norm.name, dense.in_features, dense.out_features, i == 0, i == len(pairs) - 1)
            for i, (dense, norm) in enumerate(pairs)
            if isinstance(dense, BinaryDense)
        )

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """All tensors of a state, in the one order that digests and payloads use."""
        found: list[TensorSpec] = []
        for block in self.blocks:
            out = (block.out_features,)
            found.append(TensorSpec(f"{block.dense}.weight", (block.out_features, block.in_features), "weight"))
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
        return sum(block.in_features * block.out_features for block in self.blocks)

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


def _check_name(name: object, where: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SpecError(f"the name of {where} must be a letter and up to 63 letters, digits, '_' or '-', got {name!r}")


def _check_count(count: object, where: str) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_FEATURES:
        raise SpecError(f"{where} must be an integer in [1, {MAX_FEATURES}], got {count!r}")


def _check_layers(layers: tuple[Layer, ...]) -> None:
    """Check names, counts, and that the kinds follow each other as dense, norm, sign, ..., dense, norm, loss."""
    seen: set[str] = set()
    for position, layer in enumerate(layers):
        _check_name(layer.name, f"layers[{position}] ({layer.kind})")
        if layer.name in seen:
            raise SpecError(f"every layer needs its own name; {layer.name!r} is used twice (layers[{position}])")
        seen.add(layer.name)
        for field in dataclasses.fields(layer):
            if field.name != "name":
                _check_count(getattr(layer, field.name), f"{field.name} of layer {layer.name!r}")
    cycle = (BinaryDense, L1BatchNorm, Sign)
    for position, layer in enumerate(layers):
        is_last = position == len(layers) - 1
        wanted = SoftmaxCrossEntropy if is_last and position % 3 == 2 else cycle[position % 3]
        if not isinstance(layer, wanted):
            raise SpecError(
                f"layer {layer.name!r} (layers[{position}]) must be {wanted.kind}, got {layer.kind}: blocks are "
                "binary_dense, l1_batch_norm, sign, and the last one ends in softmax_cross_entropy"
            )
    if not layers or not isinstance(layers[-1], SoftmaxCrossEntropy):
        last = repr(layers[-1].name) if layers else "nothing"
        raise SpecError(f"the last layer must be softmax_cross_entropy after an l1_batch_norm, got {last}")


def _check_widths(blocks: tuple[DenseBlock, ...], spec: ModelSpec) -> None:
    """Check that each layer takes as many numbers as the one before it gives."""
    width, source = spec.input_features, f"input_shape {list(spec.input_shape)}"
    for block, norm in zip(blocks, spec.layers[1::3], strict=True):
        if block.in_features != width:
            raise SpecError(f"layer {block.dense!r} takes {block.in_features} features but {source} gives {width}")
        width, source = block.out_features, f"layer {block.dense!r}"
        if isinstance(norm, L1BatchNorm) and norm.features != width:
            raise SpecError(f"layer {norm.name!r} takes {norm.features} features but {source} gives {width}")
    loss = spec.layers[-1]
    if isinstance(loss, SoftmaxCrossEntropy) and loss.classes != width:
        raise SpecError(f"layer {loss.name!r} tells {loss.classes} classes apart but {source} gives {width}")
