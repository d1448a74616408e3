"""Sphinx's configuration for the documentation site: `make docs` builds it into build/website.

The pages are the Markdown files of the repository, where they lie: a link between documents holds on a code
host and in the site. A link to another file is a download. A link to a folder leads to the address of the
repository (`PARAKEET_SOURCE_URL`), or is shown as text where none is set.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, Final

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform

ROOT: Final = Path(__file__).parents[1]
# Where a browser shows the files of the repository: https://HOST/OWNER/NAME/tree/main
SOURCE_URL: Final = os.environ.get("PARAKEET_SOURCE_URL", "").rstrip("/")
# The navigation: captions and their pages (or `title <page>`), in the order in which a newcomer needs them.
NAVIGATION: Final = {
    "Clients": (
        "/docs/clients",
        "/docs/protocol",
        "/docs/turn-detection",
        "/docs/phrases",
        "/docs/openai",
        "/docs/deepgram",
        "TypeScript </clients/typescript/README>",
    ),
    "Models": (
        "/docs/models",
        "The bundled model </gpu_worker/model/bundled/tiny/MODEL_CARD>",
        "Training it </training/README>",
    ),
    "Operations": (
        "/docs/operations",
        "/deploy/README",
        "/docs/limits",
        "/docs/flags",
        "/docs/access",
        "/SECURITY",
        "/docs/privacy",
        "/docs/status",
        "/docs/metrics",
        "/docs/redis",
    ),
    "Performance": ("/docs/scaling", "/docs/performance"),
    "The project": (
        "/ARCHITECTURE",
        "/docs/decisions",
        "/docs/invariants",
        "/CONTRIBUTING",
        "/tests/README",
        "/CHANGELOG",
    ),
}
# Reports of measurements lie below docs/performance in the navigation.
MEASUREMENTS: Final = ("/benchmarks/README", "/benchmarks/results/*", "/benchmarks/baseline/README")

project = "parakeet-server"
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/*.md",
    "deploy/README.md",
    "clients/typescript/README.md",
    "gpu_worker/model/bundled/tiny/MODEL_CARD.md",
    "training/README.md",
    "tests/README.md",
    "benchmarks/results/*.md",
    "benchmarks/README.md",
    "benchmarks/baseline/README.md",
]
exclude_patterns = [".*", "build/website", "dist", "**/node_modules"]
smartquotes = False  # two dashes before a flag stay two
extensions = ["myst_parser", "sphinxcontrib.mermaid"]
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

html_theme = "furo"
html_title = "parakeet-server"
html_static_path = ["static", "../build/mermaid"]
html_css_files = ["site.css"]
html_favicon = "../ingress/page/icon.svg"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
# `make docs` puts it into build/mermaid; without the setting a browser would fetch it from another host.
mermaid_use_local = "mermaid.esm.min.mjs"
mermaid_fullscreen_button = "+"
mermaid_height = "auto"


def setup(app: Sphinx) -> None:
    """Register what follows."""
    app.connect("source-read", add_navigation)
    app.add_post_transform(LinksToFolders)
    app.connect("build-finished", finish)


def add_navigation(_app: Sphinx, page: str, source: list[str]) -> None:
    """Append the navigation to two documents, which do not have it where they are read alone."""
    if page == root_doc:
        source[0] += "".join(
            _contents(f":caption: {caption}", pages) for caption, pages in NAVIGATION.items()
        )
    elif page == "docs/performance":
        source[0] += _contents(":glob:", MEASUREMENTS)


def _contents(option: str, pages: tuple[str, ...]) -> str:
    return "\n".join(["\n```{toctree}", ":hidden:", option, "", *pages, "```\n"])


class LinksToFolders(SphinxPostTransform):
    """Resolves links to folders of the repository, which have no page."""

    default_priority = 8  # before MyST, which would call them broken

    def run(self, **_options: Any) -> None:
        """Replace each by a link to the repository, or by its text."""
        for link in list(self.document.findall(pending_xref)):
            folder = (ROOT / link["refdoc"]).parent.joinpath(link["reftarget"]).resolve()
            if link["reftype"] != "myst" or not folder.is_dir():
                continue
            text = link.children
            if SOURCE_URL:
                text = [nodes.reference("", "", *text, refuri=f"{SOURCE_URL}/{folder.relative_to(ROOT)}")]
            link.replace_self(text)


def finish(app: Sphinx, failed: Exception | None) -> None:
    """Let the site start with README.md, as servers look for index.html; see that diagrams can be drawn."""
    if failed is None:
        shutil.copyfile(Path(app.outdir, "README.html"), Path(app.outdir, "index.html"))
        library = re.search(r'import mermaid from "([^"]+)"', Path(app.outdir, "index.html").read_text())
        if library is None or not Path(app.outdir, library[1]).exists():
            raise ExtensionError("README.html does not find the library that draws its diagram")
