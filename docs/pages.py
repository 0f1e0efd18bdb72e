"""Pages of the documentation site, a hook of MkDocs: Markdown files, notebooks and public packages of the repository.

Every page has the path of its file in the repository, so that the same relative links work in both.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
MARKDOWN = ("*.md", "docs/*.md", "results/*.md", "zoo/*/README.md")
PACKAGES = (
    "baselines", "callbacks", "datamodules", "icr", "layers", "llama", "mini_rlm", "optim", "regress_lm", "revdeq",
    "tokenizers",
)  # fmt: skip
CODE_BLOCK = re.compile(r"^( *)```.*?^\1```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^()\s#]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The guides of docs/ that the navigation does not name follow those that it names."""
    guides = next(entry["Guides"] for entry in config.nav if "Guides" in entry)
    named = {path for entry in guides for path in entry.values()}
    paths = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
    guides.extend(path for path in paths if path not in named)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """All files of the site: the theme's, the pages, and the files that pages link to."""
    site = Files([file for file in files if not file.abs_src_path or not _is_below(file.abs_src_path, ROOT / "docs")])
    for path in sorted(path for pattern in MARKDOWN for path in ROOT.glob(pattern)):
        site.append(_copied(path, config))
        for linked in _linked_files(path):
            if site.get_file_from_path(linked.relative_to(ROOT).as_posix()) is None:
                site.append(_copied(linked, config))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        site.append(File.generated(config, f"notebooks/{path.stem}.md", content=notebook_as_markdown(path)))
        for name, image in notebook_images(path).items():
            site.append(File.generated(config, f"notebooks/{name}", content=image))
    for name in PACKAGES:
        site.append(File.generated(config, f"api/zoo.{name}.md", content=f"# zoo.{name}\n\n::: zoo.{name}\n"))
    return site


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links to notebooks lead to their pages. The title in the browser is the heading, not the navigation's entry."""
    if heading := re.match(r"\s*# (.+)", markdown):
        page.meta.setdefault("title", heading[1])
    return re.sub(r"(\]\([^()\s]+)\.ipynb\)", r"\1.md)", markdown)


def notebook_as_markdown(path: Path) -> str:
    """The cells of a notebook as Markdown, with formulas as code and outputs; the code cell for Colab is left out."""
    cells = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            if cell["id"] != "install":
                cells.append(f"```python\n{source}\n```")
                cells += [_output_as_markdown(output, _image_name(path, cell, i)) for i, output in _outputs(cell)]
        else:
            source = re.sub(r"\$\$(.+?)\$\$", r"\n```\n\1\n```\n", source, flags=re.DOTALL)
            cells.append(re.sub(r"\$(.+?)\$", r"`\1`", source))
    return "\n\n".join(cells) + "\n"


def notebook_images(path: Path) -> dict[str, bytes]:
    """The figures in a notebook's outputs, as PNG files by name."""
    return {
        _image_name(path, cell, i): base64.b64decode(output["data"]["image/png"])
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        for i, output in _outputs(cell)
        if "image/png" in output.get("data", {})
    }


def _outputs(cell: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    return list(enumerate(cell.get("outputs", ())))


def _image_name(path: Path, cell: dict[str, Any], number: int) -> str:
    return f"{path.stem}-{cell['id']}-{number}.png"


def _output_as_markdown(output: dict[str, Any], image: str) -> str:
    """One output: a figure as a link to its file, anything else as text."""
    data = output.get("data", {})
    if "image/png" in data:
        return f"![output]({image})"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"````text\n{text.rstrip()}\n````"


def _linked_files(page: Path) -> list[Path]:
    """The files of the repository, no pages, that a page links to."""
    prose = CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))
    targets = [(page.parent / target).resolve() for target in LINK.findall(prose) if "://" not in target]
    return [path for path in targets if path.is_file() and path.suffix not in (".md", ".ipynb")]


def _copied(path: Path, config: MkDocsConfig) -> File:
    return File(path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, config.use_directory_urls)


def _is_below(path: str, folder: Path) -> bool:
    return Path(path).is_relative_to(folder)
