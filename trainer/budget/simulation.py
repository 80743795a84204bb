"""Train every run of a budget curve, one after the other, and measure them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from trainer.budget.curve import write_curve
from trainer.budget.runs import (
    Annotator,
    Member,
    Wish,
    check_lists,
    check_options,
    members,
    pool_of,
)
from trainer.fit import fit, prepare
from trainer.options import Options
from trainer.plan import make_plan
from trainer.progress import clock
from trainer.ranks import rank
from trainer.report.run_page import write_report


def simulate(options: Options, wish: Wish, say: Callable[[str], None]) -> dict[str, Any]:
    """Make the runs that are missing, then ``RUN/budget.json`` and the report of the first run.

    Args:
        options: of ``fit``, with the folder and the seed of the first run.
        wish: what the curve is to show.
        say: is told what happens.

    Returns:
        What ``budget.json`` holds.

    Raises:
        UserError: options or data that allow no curve; or what a run cannot do. The same command
            continues where it stopped.
    """
    check_options(options)
    options = replace(options, seed=wish.seeds[0])
    context = make_plan(options).context
    check_lists(context)
    pool = pool_of(context, wish)
    name = context.val_list
    assert name is not None
    annotator = Annotator(options, context.dataset, name, pool, wish)
    runs = members(options.run, wish)
    masks_of = wish.masks_of or context.train_list
    say(
        f"budget: {len(runs)} runs; masks of {len(pool)} images of list {masks_of!r}, measured on"
        f" list {name!r}"
    )
    _train(annotator, runs, say)
    facts = {
        "masks_of": masks_of,
        "available": len(pool),
        "seeds": list(wish.seeds),
        "draws": wish.draws,
    }
    content: dict[str, Any] = {}
    if rank() == 0:
        content = write_curve(options.run, name, runs, wish.seconds, facts)
        say(f"report: {write_report(options.run)}")
    return content


def _train(annotator: Annotator, runs: Sequence[Member], say: Callable[[str], None]) -> None:
    first = base = runs[0].folder
    seconds = list[float]()
    for number, member in enumerate(runs, 1):
        # Runs with masks take nearly the same time; those without are few.
        left = sum(seconds) / len(seconds) * (len(runs) - number + 1) if seconds else 0
        hint = f"; about {clock(left)} left" if left else ""
        say(f"budget: run {number} of {len(runs)}: {member.title}{hint}")
        start = time.monotonic()
        options = annotator.options_of(member, base)
        plan = prepare(options) if number == 1 else make_plan(options)
        is_new = any(not plan.context.run.done(s.name, plan.keys[s.name]) for s in plan.stages)
        fit(plan, say, [base] if member.count else [first])
        if not member.count:
            base = member.folder
        elif is_new:
            seconds.append(time.monotonic() - start)
