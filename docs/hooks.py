"""MkDocs hooks: links from the docs to files of the repository lead to them on its web page.

A link whose text is code, such as [`Scheduler.schedule`](../kvflow_jax/engine/scheduler.py), leads
to the line where that class, function or method is defined. Images of the repository become files
of the site.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(((?:\.\./)+[^)\s#]+)\)")
_IMAGE = re.compile(r"!\[([^\]\n]+)\]\(((?:\.\./)+[^)\s#]+)\)")
_IMAGES = "images/"  # folder of the site
_NAME = re.compile(r"`([A-Za-z_][\w.]*)`")


def on_files(files: Any, config: Any) -> Any:
    """Add the images of the repository that pages show."""
    from mkdocs.structure.files import File

    for page in files.documentation_pages():
        for _, target in _IMAGE.findall(page.content_string):
            path = ROOT / posixpath.normpath(
                posixpath.join("docs", posixpath.dirname(page.src_uri), target)
            )
            uri = _IMAGES + path.name
            if uri not in files.src_uris:
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite relative links that leave docs/, which MkDocs would call broken."""
    folder = posixpath.dirname(page.file.src_uri)

    def rewrite(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, match[2]))
        if path.startswith("docs/"):
            return match[0]
        line = line_of_link(match[1], ROOT / path)
        anchor = f"#L{line}" if line else ""
        return f"[{match[1]}]({config.repo_url}/blob/main/{path}{anchor})"

    def image(match: re.Match[str]) -> str:
        target = posixpath.relpath(_IMAGES + posixpath.basename(match[2]), folder or ".")
        return f"![{match[1]}]({target})"

    return _IMAGE.sub(image, _LINK.sub(rewrite, markdown))


def code_links(page: Path) -> list[tuple[str, Path]]:
    """Return the text and the file of each link of a page that leads out of docs/."""
    links = _LINK.findall(page.read_text())
    found = [(text, (page.parent / target).resolve()) for text, target in links]
    return [(text, path) for text, path in found if not path.is_relative_to(ROOT / "docs")]


def line_of_link(text: str, path: Path) -> int:
    """Return the line of the definition that a link's text names; 0 if it names a file.

    Raises:
        LookupError: the file does not define the name.
    """
    name = _NAME.fullmatch(text)
    if name is None or path.suffix != ".py" or name[1].endswith(".py"):
        return 0
    return line_of(path, name[1])


def line_of(path: Path, name: str) -> int:
    """Return the line, from 1, at which a class, function or ``Class.method`` is defined.

    Raises:
        LookupError: the file defines no such name.
    """
    body = ast.parse(path.read_text()).body
    line = 0
    for part in name.split("."):
        for node in body:
            names = [getattr(node, "name", None)]
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [getattr(target, "id", None) for target in targets]
            if part in names:
                line, body = node.lineno, getattr(node, "body", [])
                break
        else:
            raise LookupError(f"{path.relative_to(ROOT)} defines no {name}")
    return line
