"""Nodes and constants of an ONNX graph, added one after another; needs the extra ``[onnx]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

__all__ = ["OPSET", "Graph"]

OPSET = 17
"""The newest that every onnxruntime since 1.13 runs."""
_IR_VERSION = 8


class Graph:
    """A graph that is being built; every method adds a node and returns the name of what leaves it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[Any] = []
        self._constants: list[TensorProto] = []
        self._number = 0

    def constant(self, values: NDArray[Any]) -> str:
        """Add a constant."""
        name = self._next("constant")
        self._constants.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def floats(self, values: NDArray[Any]) -> str:
        """Add whole numbers that are used as float32; of a byte where they fit one."""
        if np.abs(values).max(initial=0) > 127:
            return self.constant(values.astype(np.float32))
        return self.cast(self.constant(values.astype(np.int8)), np.float32)

    def node(self, kind: str, *inputs: str, called: str | None = None, **attributes: Any) -> str:
        """Add a node.

        Args:
          kind: the operator.
          inputs: names.
          called: its output; None: anything.
          attributes: the operator's.
        """
        output = called or self._next(kind.lower())
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def cast(self, value: str, dtype: type[np.generic]) -> str:
        """Add a cast."""
        return self.node("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def scalar(self, kind: str, value: str, number: float, dtype: type[np.generic] = np.float32) -> str:
        """Add an operation with a number."""
        return self.node(kind, value, self.constant(np.array(number, dtype)))

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        """Add a reshape of all samples: ``shape`` is that of one."""
        return self.node("Reshape", value, self.constant(np.array([-1, *shape], np.int64)))

    def model(
        self,
        inputs: Mapping[str, tuple[type[np.generic], Sequence[int]]],
        outputs: Mapping[str, tuple[type[np.generic], Sequence[int]]],
        properties: Mapping[str, str],
    ) -> ModelProto:
        """Close the graph.

        Args:
          inputs: type and the shape of one sample by name.
          outputs: the same.
          properties: what is said of the model.
        """
        graph = helper.make_graph(self._nodes, self._name, _infos(inputs), _infos(outputs), self._constants)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], producer_name="bitfleet", ir_version=_IR_VERSION)
        helper.set_model_props(model, dict(properties))
        checker.check_model(model, full_check=True)
        return model

    def _next(self, what: str) -> str:
        self._number += 1
        return f"{what}_{self._number}"


def _infos(tensors: Mapping[str, tuple[type[np.generic], Sequence[int]]]) -> list[Any]:
    return [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["samples", *shape])
        for name, (dtype, shape) in tensors.items()
    ]
