"""Data sets that other packages bring: entry points of the group ``bitfleet.datasets``.

An entry point names a function that takes the data folder (None where none was given) and the split, and returns a
``Dataset``. Whatever goes wrong in it is an error of the device's data, told with the plug-in's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bnncore.data.dataset import Dataset
from bnncore.data.idx import Split
from bnncore.errors import DataError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["GROUP", "open_plugin", "plugin_names"]

GROUP = "bitfleet.datasets"
"""The group of entry points."""


def plugin_names() -> list[str]:
    """Name the data sets that installed packages bring, in order."""
    return sorted({plugin.name for plugin in _plugins()})


def open_plugin(name: str, root: Path | None, split: Split) -> Dataset:
    """Open one split of a plug-in's data set.

    Args:
      name: the entry point's.
      root: the data folder, if one was given.
      split: ``train`` or ``test``.

    Raises:
      DataError: the plug-in cannot be imported, fails, or returns something else; the message says which and how.
    """
    plugin, *others = (plugin for plugin in _plugins() if plugin.name == name)
    if others:
        raise DataError(
            f"data set {name!r} is brought by {' and by '.join(_source(one) for one in (plugin, *others))}. "
            "Uninstall all but one"
        )
    try:
        dataset = plugin.load()(root, split)
    except DataError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        raise DataError(
            f"data set {name!r} of the plug-in {_source(plugin)} fails on the {split} split: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(dataset, Dataset):
        raise DataError(
            f"data set {name!r} of the plug-in {_source(plugin)} must return a bnncore.data.Dataset, "
            f"got {type(dataset).__name__}"
        )
    return dataset


def _plugins() -> list[EntryPoint]:
    from importlib.metadata import entry_points  # brings zipfile and csv, which training on other data does without

    return list(entry_points(group=GROUP))


def _source(plugin: EntryPoint) -> str:
    package = "" if plugin.dist is None else f"{plugin.dist.name} {plugin.dist.version}, "
    return f"{package}{plugin.value}"
