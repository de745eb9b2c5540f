"""systemd units that come with the package: complete but for the path of the program, which an install decides."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from importlib import resources

from bnncore.errors import ConfigurationError

__all__ = ["render_unit"]


def render_unit(package: str, name: str) -> str:
    """Return the text of a unit that starts the program of this install.

    Args:
      package: that the unit lies in.
      name: of the program, which the unit is named after.

    Raises:
      ConfigurationError: the program is not installed, or its path is one that systemd would read otherwise.
    """
    program = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if program is None:
        raise ConfigurationError(f"{name} is not installed, neither with {sys.executable} nor on the PATH")
    if any(sign in program for sign in " \t\"'\\%$"):
        raise ConfigurationError(f"systemd cannot start {program!r}: install bitfleet under a path without such signs")
    return (resources.files(package) / f"{name}.service").read_text().replace("@PROGRAM@", program)
