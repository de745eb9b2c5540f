"""How the documentation becomes a site: `make docs`. Nothing is fetched, and every warning is an error."""

import importlib.util
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS / "_ext")]

project = "bitfleet"
copyright = "the bitfleet authors, Apache-2.0"  # noqa: A001 - Sphinx's name
version = release = installed_version("bitfleet")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "command_line", "outside"]
exclude_patterns = ["_ext", "examples"]
nitpicky = False

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_mock_imports = [name for name in ("torch", "onnx", "PIL") if importlib.util.find_spec(name) is None]
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "bitfleet"
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "native"
