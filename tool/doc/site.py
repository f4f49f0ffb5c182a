"""Hooks of mkdocs.yml: navigation from docs/README.md, and links that leave docs/.

On the disk the pages link files of the project, which a site does not have. A page of ANNEX becomes a page of the site;
any other file stands there by its name, without a link.
"""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
INDEX = "README.md"
ANNEX = {  # file of the project -> page of the site
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "initmodel/README.md": "initial_weights.md",
}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
OUTSIDE = re.compile(r"[a-z]+:|#|/")  # a scheme, a place on the page, an absolute path


def navigation(index: str) -> list[dict[str, Any]]:
    """Return a section for each heading of the index, with its pages.

    Args:
        index: the text of docs/README.md.
    """
    sections: list[dict[str, Any]] = [{"Home": INDEX}]
    seen: set[str] = set()
    for title, body in re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", index, re.M):
        pages = [site_page(target.partition("#")[0], "") for _, _, target in LINK.findall(body)]
        pages = [
            page for page in dict.fromkeys(pages) if page and page.endswith((".md", ".ipynb")) and page not in seen
        ]
        seen.update(pages)
        sections.append({title: pages})
    return sections


def site_page(target: str, folder: str) -> str | None:
    """Return the page of the site that a link means, or None.

    Args:
        target: the link without the place on the page; one that leaves for the net gives None.
        folder: where its file is, below docs/.
    """
    if not target or OUTSIDE.match(target):
        return None
    path = posixpath.normpath(posixpath.join("docs", folder, target))
    return path.removeprefix("docs/") if path.startswith("docs/") else ANNEX.get(path)


def relinked(text: str, source: str, page: str) -> str:
    """Lead links to pages of the site, or make them plain names.

    Args:
        source: file of the project that the text is from.
        page: the page of the site that it becomes.
    """

    def replace(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        target, sign, place = target.partition("#")
        if not target or OUTSIDE.match(target):
            return match[0]
        folder = posixpath.relpath(posixpath.dirname(source) or ".", "docs")
        there = site_page(target, folder)
        if there is None:
            return words if "`" in words else f"`{words.replace(chr(92), '')}`"
        return f"{picture}[{words}]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{sign}{place})"

    blocks = re.split(r"(^ *```.*?^ *```[^\n]*$)", text, flags=re.M | re.S)  # what stands in code is no link
    return "".join(block if number % 2 else LINK.sub(replace, block) for number, block in enumerate(blocks))


def on_config(config: Any) -> Any:
    """Give the site its navigation."""
    config.nav = navigation((ROOT / "docs" / INDEX).read_text(encoding="utf-8"))
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that stand beside docs/."""
    from mkdocs.structure.files import File  # an extra of the installation

    for source, page in ANNEX.items():
        files.append(File.generated(config, page, abs_src_path=os.fspath(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead the links of a page to pages of the site."""
    name = page.file.src_uri
    source = next((source for source, annex in ANNEX.items() if annex == name), f"docs/{name}")
    return relinked(markdown, source, name)
