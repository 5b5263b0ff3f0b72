"""Scripts, styles and pictures of the pages: read once, compressed ahead, and cached by browsers for ever.

Their addresses carry a digest of all of them, so that a new version has new addresses. Pages themselves are not
compressed: they hold a secret of the session next to what a stranger may have chosen, and the size of the two
compressed together would tell of the secret.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from quart import Response, request

from api.errors import not_found

PREFIX: Final = "/portal/assets"
_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
"""Of the files that are served; others, the licences, only stand beside them."""
_FOR_EVER: Final = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, as it is and compressed."""

    content_type: str
    plain: bytes
    compressed: bytes


class Assets:
    """All of them, by their path below `static/`."""

    def __init__(self) -> None:
        self._assets = dict(sorted(_found(files("api.portal") / "static", "").items()))
        digest = hashlib.sha256(b"\0".join(name.encode() + one.plain for name, one in self._assets.items()))
        self._version = digest.hexdigest()[:12]

    def url(self, name: str) -> str:
        """The address of a file. Raises KeyError for one that is not there."""
        _ = self._assets[name]
        return f"{PREFIX}/{self._version}/{name}"

    async def serve(self, version: str, name: str) -> Response:
        """The file, compressed for whom can take that. Raises Problem 404 for another version too."""
        asset = self._assets.get(name)
        if asset is None or version != self._version:
            raise not_found("file")
        packed = request.accept_encodings.quality("gzip") > 0
        answer = Response(asset.compressed if packed else asset.plain, content_type=asset.content_type)
        if packed:
            answer.headers["Content-Encoding"] = "gzip"
        answer.headers["Vary"] = "Accept-Encoding"
        answer.headers["Cache-Control"] = _FOR_EVER
        return answer


def _found(folder: Traversable, prefix: str) -> Mapping[str, Asset]:
    found: dict[str, Asset] = {}
    for entry in folder.iterdir():
        name = prefix + entry.name
        if entry.is_dir():
            found |= _found(entry, f"{name}/")
        elif (content_type := _TYPES.get(name.rpartition(".")[2])) is not None:
            content = entry.read_bytes()
            found[name] = Asset(content_type, content, gzip.compress(content, 9, mtime=0))
    return found
