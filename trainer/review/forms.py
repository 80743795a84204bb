"""The annotation tools that ``ask`` writes for and ``answer`` reads."""

from __future__ import annotations

from pathlib import Path

from trainer.errors import ConfigError, DataError, nearest
from trainer.review import cvat, folder, labelstudio
from trainer.review.files import Files
from trainer.review.form import Form
from trainer.review.ledger import is_ledger
from trainer.review.record import FILE, is_review, read_review

# An export is tried in this order: the first two are told apart by names of files.
FORMS: dict[str, Form] = {form.name: form for form in (cvat.FORM, folder.FORM, labelstudio.FORM)}
EXPORTS = (".zip", ".json")


def form_of(name: str) -> Form:
    """The form of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in FORMS:
        raise ConfigError(f"--for {name} does not exist", nearest(name, FORMS))
    return FORMS[name]


def opened_export(place: Path) -> tuple[Form, Files]:
    """The form of what a tool gave back, and its files.

    The folder of a review may hold the export: a single zip or JSON file that ``ask`` did not
    write. Without one, its own masks are taken.

    Raises:
        DataError: nothing of a known form, or several exports.
    """
    if is_review(place):
        form = form_of(read_review(place / FILE).tool)
        own = {FILE, form.own, cvat.LABELS}
        exports = [
            path
            for path in sorted(place.iterdir())
            if path.suffix.lower() in EXPORTS and path.name not in own
        ]
        if len(exports) > 1:
            raise DataError(
                f"{place} holds {len(exports)} exports: {', '.join(p.name for p in exports)}",
                "one export",
                f"wsss-trainer answer RUN {exports[-1]}",
            )
        if not exports:
            is_file = (place / form.own).is_file()
            return form, Files(place / form.own if is_file else place)
        place = exports[0]
    files = Files(place)
    # Corrections of tags alone have no mask that would tell.
    if is_ledger(place):
        return folder.FORM, files
    for form in FORMS.values():
        if form.fits(files):
            return form, files
    raise DataError(
        f"{place} holds no answers",
        "JSON of Label Studio, CVAT's Segmentation mask 1.1, or a folder masks/ of PNGs",
        "give the folder of the review, or the file that the tool exports",
    )
