"""The labelled folder: which of its masks are current, and how a new one gets there."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Literal

from serving.errors import MaskChanged
from serving.files import write_atomic
from serving.labelling.formats import Format
from serving.labelling.labeller import Failure, LabelConfig, Labelled, Model, Result
from serving.labelling.ledger import Entry, Ledger
from serving.labelling.review import REVIEW, Review
from serving.labelling.sources import Source

State = Literal["written", "skipped", "failed"]

# Errors about one name, which the disk refuses or something else has. The other images go on.
OF_ONE_NAME = (
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY),
)


class Store:
    """Writes masks, their lines in the ledger, and the review. Threads may call it at once.

    Args:
        review: None if none is made.
    """

    def __init__(
        self,
        config: LabelConfig,
        source: Source,
        form: Format,
        model: Model,
        ledger: Ledger,
        review: Review | None,
    ) -> None:
        self._config, self._source, self._format = config, source, form
        self._model, self._ledger, self._review = model, ledger, review

    def is_current(self, image: Path) -> bool:
        """Whether the mask loads, and the manifest records this graph, these settings and file."""
        entry = self._ledger.known.get(image.as_posix())
        if not entry or self._config.force:
            return False
        own = (self._model.card.graph_sha256, self._model.settings)
        if (entry.get("model_sha256"), entry.get("settings")) != own:
            return False
        try:
            facts = self._source.facts(image)
            data = (self._config.target / str(entry.get("mask"))).read_bytes()
        except OSError:
            return False
        if self._review and not self._review.is_current(entry):
            return False
        file = (entry.get("image_bytes"), entry.get("image_modified_ns"))
        return file == facts and self._format.is_whole(data, entry)

    def record(self, result: Result) -> State:
        """Write the files of a result and its line.

        Raises:
            OSError: no mask can be written.
        """
        if isinstance(result, Failure):
            return self._failed(result.image, result.error)
        try:
            self._ledger.written(self._written(result))
        except MaskChanged as error:
            return self._failed(result.image, str(error), stays=True)
        except OSError as error:
            if error.errno not in OF_ONE_NAME:
                raise
            return self._failed(result.image, error.strerror or str(error))
        return "written"

    def _failed(self, image: Path, error: str, stays: bool = False) -> State:
        name = image.as_posix()
        try:
            name.encode()
        except UnicodeEncodeError:
            name = ascii(name)
        self._ledger.failed({"image": name, "error": error}, stays)
        return "failed"

    def _written(self, result: Labelled) -> Entry:
        """The line of a mask, which is written."""
        entry = result.entry
        path = self._config.target / entry["mask"]
        self._check_mask(path, self._ledger.known.get(entry["image"], {}), result.mask)
        write_atomic(path, result.mask)
        if self._review and result.sheet:
            entry = entry | {REVIEW: self._review.add(result.image, result.sheet)}
        return entry

    def _check_mask(self, path: Path, entry: Entry, data: bytes) -> None:
        """Refuse to overwrite a mask that a user edited or put there."""
        try:
            there = path.read_bytes()
        except FileNotFoundError:
            return
        # Equal to the new mask: written by a run that was killed before it recorded it. A file that
        # does not load is damaged.
        if there in (b"", data) or hashlib.sha256(there).hexdigest() == entry.get("mask_sha256"):
            return
        if not entry or self._format.is_whole(there, entry):
            raise MaskChanged(
                f"its mask {path} was changed since it was written, or comes from elsewhere",
                "a mask of an earlier run, or none",
                "move it away, or label into another folder",
            )
