"""Hooks of mkdocs.yml: links that leave docs/.

In the repository a page of docs/ links to `../bench/RESULTS.md`; on the site that is the page `results.md`.
Any other file of the repository is named, not linked: the site does not hold it.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"../bench/RESULTS.md": "results.md"}
OUTSIDE = re.compile(r"\[([^\]]*)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def on_files(files, config):
    for path, page in PAGES.items():
        text = (ROOT / "docs" / path).resolve().read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links to files beside docs/. Raises PluginError, which ends the build, for one that is not there."""

    def inside(link: re.Match) -> str:
        text, path, anchor = link.groups(default="")
        if not (ROOT / "docs" / path).exists():
            raise PluginError(f"{page.file.src_path} links to {path}, which does not exist")
        return f"[{text}]({PAGES[path]}{anchor})" if path in PAGES else text

    return OUTSIDE.sub(inside, markdown)
