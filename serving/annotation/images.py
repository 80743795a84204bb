"""The images that tasks of Label Studio name, from the places that the operator allows and no
others.

A task is written by whoever may import tasks. Without an allowed place, an image must be in the
task itself. Nothing is said of files and hosts outside these places, not even whether they exist.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from serving.errors import ConfigError, FieldError, ImageTooLarge

LOCAL_FILES, UPLOADS = "/data/local-files/", "/data/upload/"
SECONDS = 30.0
FIELD = "data"


class Images:
    """Reads images. Thread-safe.

    Args:
        root: folder of images that tasks may name; None for none.
        studio: address of Label Studio, for its uploads; empty for none.
        token: of Label Studio; sent to ``studio`` only.
        prefixes: beginnings of other addresses that tasks may name.
        max_bytes: of an image; an attribute, too.

    Raises:
        ConfigError: the folder is none, or an address is none.
    """

    def __init__(
        self,
        root: Path | None = None,
        studio: str = "",
        token: str = "",
        prefixes: Sequence[str] = (),
        max_bytes: int = 32 * 1024 * 1024,
    ) -> None:
        if root and not root.is_dir():
            raise ConfigError(f"--images-root {root} is no folder", "a folder of images")
        self._root = root.resolve() if root else None
        self._studio = _address("--label-studio-url", studio) if studio else None
        self._others = [_address("--image-url", prefix) for prefix in prefixes]
        self._token = token
        self.max_bytes = max_bytes
        self._opener = urllib.request.build_opener(_NoRedirect)

    def read(self, value: Any) -> bytes:
        """The image file that a task names.

        Raises:
            FieldError: no text, a place that is not allowed, or nothing there.
            ImageTooLarge: more than ``max_bytes``.
        """
        if not isinstance(value, str) or not value.strip():
            raise FieldError("the task has no image", "an address or a data: URI", field=FIELD)
        if value.startswith("data:"):
            return self._embedded(value)
        try:
            place = urlsplit(value.strip())
            host = place.netloc
        except ValueError:
            raise FieldError(f"{value[:80]!r} is no address", "an address", field=FIELD) from None
        if place.scheme in ("http", "https") and host:
            return self._remote(place)
        if place.scheme not in ("", "file"):
            raise FieldError(
                f"an image at {place.scheme}://, which is not read here",
                "an image that Label Studio hands out by http",
                "proxied storage in Label Studio, and --label-studio-url",
                field=FIELD,
            )
        path = unquote(place.path)
        of_studio = path.startswith(UPLOADS) or (self._studio and path.startswith("/"))
        if path == LOCAL_FILES:
            path = parse_qs(place.query).get("d", [""])[0]
            if self._root or not self._studio:
                return self._file(path)
        elif self._root and not of_studio:
            return self._file(path)
        if self._studio and place.path.startswith("/") and place.scheme == "":
            base = self._studio.path
            inside = "" if place.path.startswith(f"{base}/") else base
            path = inside + place.path
            return self._remote(self._studio._replace(path=path, query=place.query))
        raise FieldError(
            f"{value[:80]!r} is on the disk of Label Studio or of this machine",
            "an address that this backend may read",
            "--label-studio-url http://HOST:8080, or --images-root DIR",
            field=FIELD,
        )

    def _embedded(self, value: str) -> bytes:
        head, comma, text = value.partition(",")
        self._check_size(len(text) * 3 // 4)
        try:
            if not comma or not head.endswith(";base64"):
                raise ValueError
            return base64.b64decode(text, validate=True)
        except (ValueError, binascii.Error):
            raise FieldError(
                "a data: URI without an image", "data:image/png;base64,...", field=FIELD
            ) from None

    def _file(self, path: str) -> bytes:
        missing = FieldError(
            f"no image {path[:80]!r} below --images-root",
            "the path of an image, relative to that folder",
            field=FIELD,
        )
        if self._root is None:
            raise FieldError(
                "an image on the disk of this machine",
                "a folder that tasks may name",
                "--images-root DIR",
                field=FIELD,
            )
        try:
            # Links are followed before the check, so that none leads out.
            file = (self._root / path).resolve()
            if not file.is_relative_to(self._root):
                file = (self._root / path.lstrip("/")).resolve()
            if not file.is_relative_to(self._root) or not file.is_file():
                raise missing
            self._check_size(file.stat().st_size)
            return file.read_bytes()
        except (OSError, ValueError):
            raise missing from None

    def _remote(self, place: SplitResult) -> bytes:
        origins = [one for one in (self._studio, *self._others) if one and _within(place, one)]
        if not origins:
            raise FieldError(
                f"an image at {place.scheme}://{place.netloc}, where this backend may not read",
                "a place that the operator allows",
                f"--image-url {place.scheme}://{place.netloc}/",
                field=FIELD,
            )
        request = urllib.request.Request(place.geturl())
        if self._token and origins[0] is self._studio:
            request.add_header("Authorization", self._authorization(self._studio))
        return self._fetched(request)

    def _fetched(self, request: urllib.request.Request) -> bytes:
        name = request.full_url.partition("?")[0][:160]
        try:
            with self._opener.open(request, timeout=SECONDS) as reply:
                content: bytes = reply.read(self.max_bytes + 1)
        except urllib.error.HTTPError as error:
            with error:
                where = " to another place" if 300 <= error.code < 400 else ""
                hint = "--label-studio-token" if error.code in (401, 403) else ""
                raise FieldError(
                    f"{name} answers {error.code}{where}", "200 and an image", hint, field=FIELD
                ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise FieldError(f"{name} cannot be read: {reason}", "an image", field=FIELD) from None
        self._check_size(len(content))
        return content

    def _authorization(self, studio: SplitResult) -> str:
        """The header for a token of Label Studio, of either kind."""
        # A personal access token is a JSON Web Token that buys another one, good for minutes; a
        # legacy token is 40 hexadecimal digits.
        if self._token.count(".") != 2:
            return f"Token {self._token}"
        request = urllib.request.Request(
            studio._replace(path=f"{studio.path}/api/token/refresh").geturl(),
            json.dumps({"refresh": self._token}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            return f"Bearer {json.loads(self._fetched(request))['access']}"
        except (ValueError, KeyError, TypeError):
            raise FieldError("Label Studio refuses the token", "--label-studio-token") from None

    def _check_size(self, size: int) -> None:
        if size > self.max_bytes:
            raise ImageTooLarge(
                f"the image has more than {self.max_bytes:,} bytes",
                f"at most {self.max_bytes:,} bytes",
                "--max-bytes",
                field=FIELD,
            )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An allowed place must not lead to one that is not."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _address(option: str, text: str) -> SplitResult:
    place = urlsplit(text)
    if place.scheme not in ("http", "https") or not place.netloc or place.query:
        raise ConfigError(f"{option} {text} is no address", "http://HOST:PORT", f"{option} http://")
    return place._replace(path=place.path.rstrip("/"))


def _within(place: SplitResult, base: SplitResult) -> bool:
    if (place.scheme, place.netloc.lower()) != (base.scheme, base.netloc.lower()):
        return False
    path = unquote(place.path)
    inside = path == base.path or path.startswith(f"{base.path}/")
    return inside and ".." not in path.replace("\\", "/").split("/")
