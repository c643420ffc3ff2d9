"""How container images are named: ``[registry/]path[:tag][@digest]``.

The grammar is that of https://github.com/distribution/reference (``regexp.go``), which Docker and Podman share.
"""

from __future__ import annotations

import re
from typing import Final

from kolejka.common.errors import InputError

_LABEL: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY: Final = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME: Final = re.compile(
    rf"(?:{_REGISTRY}/)?{_PART}(?:/{_PART})*(?::[\w][\w.-]{{0,127}})?"
    r"(?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,})?",
    re.ASCII,
)
MAX_NAME: Final = 512


def check_image_name(name: str) -> str:
    """The name. InputError when no image can be called so."""
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise InputError(f"{name[:60]!a} cannot be the name of an image; write it as registry/path:tag, in lower case")
    return name
