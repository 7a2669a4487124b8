"""What mkdocs adds to the pages in docs/: pages that lie beside their subject, and references of configs and profiles.

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
from hpc_recolor.launch.profile import Container, Profile

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
NAMES = {
    **{Path: "path", str: "text", int: "integer", float: "number", bool: "`true`, `false`"},
    Container: "section",
}
# A paragraph that is a link to an example, whose code the site shows in its place.
EXAMPLE = re.compile(r"^\[\w+\.py\]\((examples/\w+\.py)\)$", re.MULTILINE)
# A link or a picture of Markdown, but to the web, to a place in its page, or in code.
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for page, make in {"configuration.md": config_reference, "profile.md": profile_reference}.items():
        files.append(File.generated(config, page, content=make()))
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

    shown = EXAMPLE.sub(lambda link: f"```python\n{(ROOT / 'docs' / link.group(1)).read_text()}```", markdown)
    return LINK.sub(point, shown)


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


def profile_reference() -> str:
    """The page that lists every key of a cluster profile, from its declaration."""
    return f"""# Profile keys

Every key of a cluster's profile, as it is declared in `hpc_recolor/launch/profile.py`. What a profile does not set is
left to SLURM's defaults. [Recipes](clusters.md) says what to write for what your cluster has.

{_keys(Profile)}
## container

{Container.__doc__}

{_keys(Container)}"""


def _keys(section: type[Section]) -> str:
    rows = (
        f"| `{key}`<br>{type_text(field.annotation)} | {field.description or 'See below.'} |\n"
        for key, field in section.model_fields.items()
    )
    return f"| key and type | meaning |\n| --- | --- |\n{''.join(rows)}"


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
        return " or ".join(type_text(one) for one in inner if one is not NoneType)  # no default: it may be left out
    if origin is tuple:
        return f"list of {type_text(inner[0])}s"
    return NAMES[annotation]


def _default_text(value: Any) -> str:
    if value is None or value == ():
        return ""
    shown = str(value).lower() if isinstance(value, bool) else str(list(value) if isinstance(value, tuple) else value)
    return f"`{shown}`"
