"""Leaves out requests whose fault the description cannot name, so that every refusal counts."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Whether to send a case. Random bytes are no image, and an option may stand in the query or in
    the form, not in both.
    """
    form = case.body if isinstance(case.body, dict) else {}
    is_random = case.media_type == "application/octet-stream"
    return not is_random and not set(form) & set(case.query or {})
