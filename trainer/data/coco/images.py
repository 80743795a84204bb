"""The image files that a COCO JSON names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from trainer.data.image_files import ImageNames, walk
from trainer.data.names import composed, folded
from trainer.data.pixels import IMAGE_SUFFIXES
from trainer.data.remarks import Remarks
from trainer.errors import some

PREFIX = re.compile(r"^COCO_[a-z]+\d{4}_")
FOREIGN = re.compile(r"[A-Za-z]:|/|\.\./|\w+://")
"""Beginnings of paths of another machine, or of another place on this one."""


class CocoImages:
    """The images of a data folder.

    A name is looked for in the folders that a JSON may mean: its own folder, the folder called like
    its list, ``images/`` and that name, ``images/``, the data folder and ``JPEGImages/``, each with
    and without the prefix ``COCO_train2014_``. If none has it, ``ImageNames`` looks below them.
    Only files below the data folder count.

    Attributes:
        notes: files that are left out.
    """

    def __init__(self, root: Path) -> None:
        self.root, files = root, walk(root)
        self.notes = files.notes()
        self.files = {path.relative_to(root).as_posix(): path for path in files.images}
        self._left_out = {
            folded(path.name): reason for reason, paths in files.left_out.items() for path in paths
        }

    def locate(
        self, json: Path, name: str, file_names: Sequence[str], remarks: Remarks
    ) -> dict[str, Path]:
        """Images by file name, without those that are missing, ambiguous or named twice.

        Args:
            json: the file.
            name: of its list.
            file_names: all that it names.
            remarks: gets what is wrong with the others.
        """
        folders = [json.parent.relative_to(self.root).as_posix(), name, f"images/{name}", "images"]
        folders += [".", "JPEGImages"]
        # Exact places first: a search below all folders may find several images of one name.
        hits = {each: self._exact(each, name, folders) for each in file_names}
        rest = [each for each, paths in hits.items() if not paths]
        if rest:
            finders = [ImageNames(*each, rest) for each in self._below(folders)]
            hits |= {each: _loose(each, name, finders) for each in rest}
        owners: dict[Path, list[str]] = defaultdict(list)
        for each in file_names:
            if len(hits[each]) == 1:
                owners[hits[each][0]].append(each)
        self._complain(json, hits, owners, remarks)
        return {names[0]: path for path, names in owners.items() if len(names) == 1}

    def _exact(self, file_name: str, name: str, folders: Sequence[str]) -> list[Path]:
        """The file in the first of the places that has it."""
        for each in _variants(file_name, name):
            for folder in folders:
                path = self.files.get(str(PurePosixPath(folder, each)))
                if path is not None:
                    return [path]
        return []

    def _below(self, folders: Sequence[str]) -> Iterator[tuple[Path, list[Path]]]:
        """The folders that have images, and the images below each; the data folder last."""
        for folder in (*(each for each in dict.fromkeys(folders) if each != "."), "."):
            start = "" if folder == "." else f"{folder}/"
            images = [path for place, path in self.files.items() if place.startswith(start)]
            if images:
                yield self.root / folder, images

    def _complain(
        self,
        json: Path,
        hits: dict[str, list[Path]],
        owners: dict[Path, list[str]],
        remarks: Remarks,
    ) -> None:
        missing = [each for each, paths in hits.items() if not paths]
        unread = [each for each in missing if folded(_parts(each)[-1]) in self._left_out]
        missing = [each for each in missing if each not in set(unread)]
        several = [each for each, paths in hits.items() if len(paths) > 1]
        again = [names for names in owners.values() if len(names) > 1]
        if missing:
            remarks.problem(
                f"{json} names {len(missing)} images that are not there: {some(missing)}",
                f"them in or below {self.root} ({len(self.files)} images are there)",
                "bring the images, or take the entries out of the JSON",
            )
        if unread:
            reasons = {self._left_out[folded(_parts(each)[-1])] for each in unread}
            remarks.problem(
                f"{json} names {len(unread)} images that are there and left out: {some(unread)}",
                "image files that can be read",
                f"they are {some(sorted(reasons))}",
            )
        if several:
            places = some(self._place(path) for path in hits[several[0]])
            remarks.problem(
                f"{json} uses {len(several)} names that several images have: {some(several)}"
                f" (the first: {places})",
                "file_name with the folder of the image",
                "write the folder too",
            )
        if again:
            remarks.problem(
                f"{json} names {len(again)} images more than once:"
                f" {some(' = '.join(names) for names in again)}",
                "one entry an image",
                "put the annotations of an image under one id",
            )

    def _place(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def record_name(root: Path, file_name: str, image: Path) -> str:
    """Id of an image: the folders of its ``file_name`` that are there, and its name without suffix,
    with ``__`` between them.
    """
    *folders, base = _parts(file_name)
    inside = [folded(part) for part in image.parent.relative_to(root).parts]
    while folders and [folded(part) for part in folders] != inside[-len(folders) :]:
        folders.pop(0)
    path = PurePosixPath(base)
    stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else base
    return composed("__".join((*folders, stem)))


def _parts(file_name: str) -> list[str]:
    parts = file_name.replace("\\", "/").split("/")
    return [part for part in parts if part not in ("", ".", "..")] or [""]


def _variants(file_name: str, name: str) -> Iterator[str]:
    """The name as it is, then without or with the prefix of COCO 2014."""
    # 2014 has COCO_train2014_000000000009.jpg where 2017 has 000000000009.jpg.
    yield file_name
    folder, slash, base = file_name.replace("\\", "/").rpartition("/")
    bare = PREFIX.sub("", base)
    long_names = (f"COCO_{name}_{base}", f"COCO_train2014_{base}", f"COCO_val2014_{base}")
    for other in (bare,) if bare != base else long_names:
        yield f"{folder}{slash}{other}"


def _loose(file_name: str, name: str, finders: Sequence[ImageNames]) -> list[Path]:
    """Images that the name may mean, in the first folder that has any."""
    variants = list(_variants(file_name, name))
    if FOREIGN.match(file_name.replace("\\", "/")):
        variants.append(_parts(file_name.partition("?")[0])[-1])
    hits = (finder.find(each) for each in variants for finder in finders)
    return next((paths for paths in hits if paths), [])
