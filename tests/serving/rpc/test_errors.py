from __future__ import annotations

from serving.errors import FieldError, nearest
from serving.rpc import status


def test_what_is_like_a_name_is_told_and_long_lists_are_cut():
    assert nearest("cta", ["cat", "dog"]) == "one of: cat, dog; nearest: cat"
    assert nearest("x", []) == "one of: none is there"
    many = [f"class {number}" for number in range(250)]
    told = nearest("class 2x", many)
    assert "class 0, class 1" in told
    assert told.endswith("; nearest: class 2")
    shown = told.partition(" and ")[0].removeprefix("one of: ").split(", ")
    assert f"and {250 - len(shown)} more" in told
    assert len(told) < 350


def test_the_longest_error_fits_into_the_metadata_of_a_reply():
    name, many = "字" * 10_000, ["字" * 30 + str(number) for number in range(250)]
    error = FieldError(
        f"no class {name!r}",
        nearest(name, many),
        field="classes",
        metadata={"known": ",".join(many)},
    )
    told = status.to_status(error)
    # gRPC writes every byte of a message that is no ASCII as three.
    size = (
        3 * len(told.details.encode())
        + sum(len(value) for _, value in told.trailing_metadata) * 4 // 3
    )
    assert size < 14_000
