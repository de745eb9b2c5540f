"""Every error that bitfleet raises on purpose, with the exit code that a command ends with.

::

    BitfleetError                  exit 1
     ├ ConfigurationError          exit 3: something the user gave is wrong; nothing was started
     │  ├ SpecError                  a network's description
     │  ├ DataError                  a data set: folder, file, label
     │  ├ CheckpointError            a checkpoint file
     │  ├ BudgetError                a memory budget that nothing fits in
     │  └ OptimizerError             a preset, an optimizer or its numbers
     ├ UnreachableError            exit 4: no answer from the coordinator
     ├ IncompatibleError           exit 5: two sides that do not fit each other
     │  ├ ShapeError                 tensors and a network
     │  ├ PayloadError               bytes that are no valid model or update
     │  └ ProtocolError              two versions of the wire protocol
     ├ ExchangeFailedError         a round's masked updates cannot be added up: too few members answered
     └ TaskError                   a device's task ends without an update; its text travels to the coordinator
        ├ TaskDeclinedError          the device will not do it
        │  └ ExchangeRefusedError      a step of secure aggregation would not protect it
        ├ TaskFailedError            the device tried and could not
        └ ModelMissingError          the trainer cannot make the model itself: it has to be downloaded

A message says what was required, what was received, where, and what to do next. This module needs the standard
library alone, so that a process without NumPy can use it. The text of a TaskError is read by a stranger: it holds no
path, no address and no other secret of the device.
"""

from __future__ import annotations

__all__ = [
    "BitfleetError",
    "BudgetError",
    "CheckpointError",
    "ConfigurationError",
    "DataError",
    "ExchangeFailedError",
    "ExchangeRefusedError",
    "IncompatibleError",
    "ModelMissingError",
    "OptimizerError",
    "PayloadError",
    "ProtocolError",
    "ShapeError",
    "SpecError",
    "TaskDeclinedError",
    "TaskError",
    "TaskFailedError",
    "UnreachableError",
]


class BitfleetError(Exception):
    """The root of the tree: catch this to catch all that bitfleet raises on purpose."""

    exit_code: int = 1


class ConfigurationError(BitfleetError):
    """Something that the user gave cannot be used: a file, a folder, a number, an address."""

    exit_code = 3


class SpecError(ConfigurationError):
    """A network's description is malformed or contradicts itself."""


class DataError(ConfigurationError):
    """A data set is missing, truncated, or holds what it must not hold."""


class CheckpointError(ConfigurationError):
    """A checkpoint file is missing, truncated, corrupted or of another program."""


class BudgetError(ConfigurationError):
    """No training plan fits in the memory budget that was given."""


class OptimizerError(ConfigurationError):
    """A preset or an optimizer does not exist, or its numbers are out of range."""


class UnreachableError(BitfleetError):
    """The coordinator did not answer."""

    exit_code = 4


class IncompatibleError(BitfleetError):
    """Two sides do not fit each other."""

    exit_code = 5


class ShapeError(IncompatibleError):
    """Tensors do not fit the network: one is missing, unknown, or of another shape."""


class PayloadError(IncompatibleError):
    """Bytes or tensors are no valid model or update: cut, corrupted, of another network, not finite, out of range."""


class ProtocolError(IncompatibleError):
    """Device and coordinator share no version of the wire protocol."""


class ExchangeFailedError(BitfleetError):
    """An exchange of secure aggregation has lost too many members, or too many of their shares, to be finished."""


class TaskError(BitfleetError):
    """A task that ends without an update. The text is sent to the coordinator."""


class TaskDeclinedError(TaskError):
    """The task does not fit this device: its data, its memory, its hours."""


class ExchangeRefusedError(TaskDeclinedError):
    """A step of secure aggregation was asked for in a way that would not protect this device."""


class TaskFailedError(TaskError):
    """The device tried and could not."""


class ModelMissingError(TaskError):
    """The model that the trainer made from the seed is not the one that the task names."""
