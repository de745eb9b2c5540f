"""Links to files beside docs/ (sources, the README) are shown as their path in the repository: the site has no copy."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class OutsideLinks(SphinxTransform):
    """Replaces what leads out of docs/."""

    default_priority = 5  # before references are resolved

    def apply(self) -> None:
        """Look at the links of one page."""
        docs = Path(self.env.srcdir).resolve()
        page = Path(self.env.doc2path(self.env.docname)).parent
        kinds = (nodes.reference, addnodes.pending_xref, addnodes.download_reference)
        for node in [node for node in self.document.findall() if isinstance(node, kinds)]:
            target = node.get("refuri") or node.get("reftarget") or ""
            place = (page / target.partition("#")[0]).resolve()
            if not place.exists():
                place = place.with_name(f"{place.name}.md")  # MyST leaves a page's ending out
            if not target or "://" in target or place.is_relative_to(docs) or not place.exists():
                continue
            shown = nodes.inline("", "", *node.children)
            where = str(place.relative_to(docs.parent))
            if node.astext() != where:
                shown += [nodes.Text(" ("), nodes.literal(text=where), nodes.Text(")")]
            node.replace_self(shown)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform."""
    app.add_transform(OutsideLinks)
    return {"parallel_read_safe": True}
