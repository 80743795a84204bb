"""The command that simulates an annotator."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from trainer.commands.data import Json, LogOption
from trainer.commands.fit import options_of, parse
from trainer.errors import ConfigError
from trainer.progress import Log, say


class Choosing(StrEnum):
    """How the images with a mask are chosen."""

    ask = "ask"
    random = "random"
    both = "both"


def budget(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Data folder with true masks.")],
    run: Annotated[
        Path,
        typer.Option(help="Run on tags alone; the runs with masks go into its folder budget/."),
    ] = Path("runs/budget"),
    masks_of: Annotated[
        str | None,
        typer.Option(
            help="List whose true masks stand in for the person. Default: the training list."
        ),
    ] = None,
    steps: Annotated[
        str, typer.Option(metavar="N,N,...", help="Numbers of masks; 0 is always there.")
    ] = "0,8,16,32,64",
    chosen: Annotated[
        Choosing,
        typer.Option(help="Who chooses the images: wsss-trainer ask, chance, or both in turn."),
    ] = Choosing.ask,
    draws: Annotated[int, typer.Option(min=1, help="Random choices of each number and seed.")] = 1,
    alone: Annotated[
        bool, typer.Option("--alone", help="Train on the masks without the tags too.")
    ] = False,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Seeds, such as 0,1,2. Default: that of --seed."),
    ] = None,
    seconds: Annotated[
        str, typer.Option(metavar="S,S,...", help="Seconds of annotation a mask.")
    ] = "20,240",
    json_: Json = False,
    log: LogOption = Log.text,
) -> None:
    """Show what more true masks would bring: the mean IoU against the number of masks.

    True masks of the data stand in for a person. The classifier and its maps are trained once, on
    tags alone; then a segmenter is trained for each number of masks. The curve goes into
    RUN/budget.json, the report of RUN and wsss-trainer eval RUN. The same command continues where
    it stopped. The validation list neither trains nor chooses.

    Everything after -- goes to every run's fit. With --supervision both there, the figures are also
    compared with training on all true masks.

    \b
    Examples:
      wsss-trainer budget photos/ --masks-of train --steps 0,8,16,32,64
      wsss-trainer budget photos/ --steps 30,60 --chosen both --draws 5 -- --backbone resnet50
      wsss-trainer budget photos/ --alone --seeds 0,1,2 --run runs/curve -- --supervision both
      wsss-trainer budget photos/ --seconds 35,90 --json
    """
    from trainer.budget.runs import Wish
    from trainer.budget.simulation import simulate
    from trainer.budget.table import print_budget
    from trainer.seed_folder import parse_seeds

    params = parse([str(data), "--run", str(run), *context.args], log)
    if params["seeds"]:
        raise ConfigError("--seeds after --", "--seeds of budget", "--seeds before --")
    options, reason = options_of(params)
    if reason:
        say(reason)
    ways = ("ask", "random") if chosen is Choosing.both else (chosen.value,)
    wish = Wish(
        masks_of,
        tuple(count for count in numbers("--steps", steps) if count),
        ways,
        alone,
        parse_seeds(seeds) if seeds else (options.seed,),
        draws,
        numbers("--seconds", seconds),
    )
    content = simulate(options, wish, say)
    if json_:
        print(json.dumps(content, indent=1))
    else:
        print_budget(content, run)


def numbers(option: str, text: str) -> tuple[int, ...]:
    """The different whole numbers of ``0,8,16``, ascending.

    Raises:
        ConfigError: something else stands there.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(
            f"{option} {text}", "whole numbers separated by commas", f"{option} 0,8,16"
        )
    return tuple(sorted({int(part) for part in parts}))
