"""What mkdocs adds to the pages in docs/: pages that lie beside their subject, and the reference of the config.

mkdocs calls `on_files` and `on_page_markdown` by their names.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from hpc_recolor.config import Config, Section, policies

ROOT = Path(__file__).parents[2]
# Pages of the site, and the files of the repository that they are.
ELSEWHERE = {
    "index.md": "README.md",
    "slurm.md": "slurm/README.md",
    "kernels.md": "kernels/README.md",
    "model-card.md": "hpc_recolor/models/weights/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
REFERENCE = "configuration.md"
# A link or a picture of Markdown, but to the web, to a place in its page, or in code.
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    files.append(File.generated(config, REFERENCE, content=config_reference()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links between files of the repository at pages of the site; where there is none, names the file."""
    source, pages = source_of(page.file.src_uri), {source_of(file.src_uri): file.src_uri for file in files}

    def point(link: re.Match[str]) -> str:
        picture, text, target, anchor = link.group(1), link.group(2), link.group(3), link.group(4) or ""
        target = os.path.normpath(os.path.join(os.path.dirname(source), target))
        if target in pages:
            found = os.path.relpath(pages[target], os.path.dirname(page.file.src_uri) or ".")
            return f"{picture}[{text}]({found}{anchor})"
        if not (ROOT / target).exists():
            return link.group()  # mkdocs names it
        return text if Path(target).name in text else f"{text} (`{target}`)"

    return LINK.sub(point, markdown)


def source_of(page: str) -> str:
    """The file of the repository that a file of the site is."""
    return ELSEWHERE.get(page, f"docs/{page}")


def config_reference() -> str:
    """The page that lists every field of the config, from its declaration."""
    sections = "\n".join(_section(name, section) for name, section in Config())
    return f"""# Config

Every field of a run's config, as it is declared in `hpc_recolor/config.py`. Each is a key of a YAML file, a flag of
`train`, `submit` and `demo` (`--train.lr 1e-4`), and a key for `load_config`. Flags win over the file, the file over
the defaults.

The last column says what another value means. **recipe**: networks learn something else, so reports name the field
where two runs differ in it. **fixed**: it would be another run, so a run is not resumed with it. **may change**: a run
may be.

{sections}"""


def _section(name: str, section: Section) -> str:
    rows = "\n".join(_rows(name, section))
    return f"""## {name}

{section.__doc__}

| field and type | default | meaning | policy |
| --- | --- | --- | --- |
{rows}
"""


def _rows(name: str, section: Section) -> Iterator[str]:
    for key, field in type(section).model_fields.items():
        policy = policies()[f"{name}.{key}"]
        cells = (
            f'<span id="{name}.{key}">`{name}.{key}`</span><br>{type_text(field.annotation)}',
            _default_text(field.default),
            (field.description or "").replace("|", r"\|"),
            ("recipe, " if policy.recipe else "") + ("may change" if policy.may_change else "fixed"),
        )
        yield f"| {' | '.join(cells)} |"


def type_text(annotation: Any) -> str:
    """A type in words, such as `number`, or its choices."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(inner[0])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin in (Union, UnionType):
        return " or ".join(type_text(one) for one in inner)
    if origin is tuple:
        return f"list of {type_text(inner[0])}s"
    return {NoneType: "nothing", Path: "path", str: "text", int: "integer", float: "number", bool: "`true`, `false`"}[
        annotation
    ]


def _default_text(value: Any) -> str:
    if value is None or value == ():
        return ""
    shown = str(value).lower() if isinstance(value, bool) else str(list(value) if isinstance(value, tuple) else value)
    return f"`{shown}`"
