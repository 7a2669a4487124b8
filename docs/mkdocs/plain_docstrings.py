"""Docstrings in the site: plain text, in which `L*` and `a*, b*` are colors, not Markdown's emphasis."""

import re
from typing import Any

from griffe import Extension, Object

# An asterisk, or code, which stays as it is: a span in backticks, or an indented line.
ASTERISK = re.compile(r"`[^`]*`|^    .*$|\*", re.MULTILINE)


class PlainDocstrings(Extension):
    """Escapes the asterisks of docstrings."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe with each object that it has read."""
        if obj.docstring:
            obj.docstring.value = ASTERISK.sub(_escaped, obj.docstring.value)


def _escaped(found: re.Match[str]) -> str:
    return found.group().replace("*", r"\*") if found.group() == "*" else found.group()
