"""YAML of plain values alone: the only place that reads it, with a loader that makes nothing but texts and numbers."""

from __future__ import annotations

from typing import Any

import yaml

from server.job_problems import KeyPath


class _Loader(yaml.SafeLoader):
    """YAML's safe types, without keys that are written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(None, None, f"key {key!r} must be a text", key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(None, None, f"key {key!r} is written twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(name: str, text: str) -> Any:
    """Read a document.

    Args:
      name: of the file, for messages.
      text: what is in it.

    Raises:
      ValueError: it is no YAML or nested too deeply, a tag asks for more than plain values, a key is no text or written
        twice; the message says where.
    """
    try:
        loader = _Loader(text)
        loader.name = name
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply") from error


def write_yaml(value: dict[str, Any]) -> str:
    """Write a document: keys in their order, lists in one line."""
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    return text


def find_yaml_line(text: str, path: KeyPath) -> int | None:
    """Find the line of a key, or of the innermost one around it that is there; None: of none."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    line = None
    for key in path:
        if isinstance(node, yaml.MappingNode):
            pairs = [(name, value) for name, value in node.value if name.value == key]
            if not pairs:
                break
            name, node = pairs[0]
            line = name.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line
