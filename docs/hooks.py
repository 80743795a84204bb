"""Two things that mkdocs cannot do alone: pages from outside docs/, and links to source files."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Pages of the repository that GitHub shows in their own folders, and where the site has them.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "develop/contributing.md",
    "CHANGELOG.md": "develop/changelog.md",
    "exported/README.md": "repository.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/."""
    for source, target in OUTSIDE.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Point links at pages of the site; a link to a file that the site lacks becomes its text."""
    here = page.file.src_uri
    source = {target: source for source, target in OUTSIDE.items()}.get(here, f"docs/{here}")

    def mended(link: re.Match[str]) -> str:
        image, text, target, anchor = link.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        uri = OUTSIDE.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(uri) is None:
            return text if (ROOT / path).exists() else link[0]
        relative = posixpath.relpath(uri, posixpath.dirname(here) or ".")
        return f"{image}[{text}]({relative}{anchor or ''})"

    return LINK.sub(mended, markdown)
