"""``wsss-trainer``: parse, call one function, print.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import io
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.commands import answer as answer_command
from trainer.commands import ask as ask_command
from trainer.commands import budget as budget_command
from trainer.commands import data as data_commands
from trainer.commands import export as export_command
from trainer.commands import fit as fit_command
from trainer.commands import measure as measure_commands
from trainer.commands import predict as predict_command
from trainer.commands import reproduce as reproduce_command
from trainer.commands import weights as weights_commands
from trainer.commands.data import Json, LogOption, RunArgument
from trainer.cores import wait_briefly
from trainer.errors import UserError, explained
from trainer.progress import Log, say, tell
from trainer.ranks import rank, world_size

SHARED = {"fit", "predict", "budget", "reproduce"}
"""Commands whose work the processes of torchrun share. Any other runs in the first one alone."""
FIRST_SECONDS = 5.0
"""How long an error waits for that of the first process."""
app = typer.Typer(
    help="From image-level tags to pixel masks: train, refine, segment, evaluate, export.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(weights_commands.app, name="weights")
# Here, before a command imports torch, whose OpenMP reads the environment once.
wait_briefly()


def main() -> None:
    """Entry point: an error that the user can mend becomes a few lines and exit code 2."""
    if rank():
        # Depending on Python's version, torchrun passes the -- before the command on.
        if not SHARED & {*[word for word in sys.argv[1:] if word != "--"][:1]}:
            return
        # Results and warnings are those of the first process.
        sys.stdout = io.StringIO()
        warnings.simplefilter("ignore")
    # Names of files and the frames of tables may hold letters that a terminal has no code for.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        run()
    except Exception:
        wait_for_first()
        raise


def run() -> None:
    """Run the command that was typed."""
    from trainer.interrupt import Interrupted

    try:
        app()
    except UserError as error:
        fail(str(error), error.exit_code)
    except Interrupted as stop:
        fail(str(stop), stop.exit_code)
    except ModuleNotFoundError as error:
        # A missing file of our own is a bug, which needs its traceback.
        if (error.name or "").partition(".")[0] in ("trainer", "serving"):
            raise
        packages = "the packages of the training half, and those that your own files import"
        hint = "pip install -e '.[train]'"
        fail(f"{error.name} is not installed\nexpected: {packages}\ntry: {hint}", 2)
    except (RuntimeError, MemoryError) as error:
        explanation = explained(error)
        if explanation is None:
            raise
        fail(str(explanation), explanation.exit_code)
    except OSError as error:
        # Only what a user can mend. Any other error is a bug, which needs its traceback.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        hint = "free some space, or get write access; then run the same command again: it goes on"
        fail(f"{error.strerror}: {error.filename}\ntry: {hint}", 2)


def fail(text: str, code: int) -> None:
    """Print an error to stderr and exit with ``code``."""
    wait_for_first()
    if rank():
        text = f"process {rank()} of 0 to {world_size() - 1}: {text}"
    tell(f"error: {text}", "error", text=text, exit_code=code)
    raise SystemExit(code)


def wait_for_first() -> None:
    """Mostly all processes of torchrun have the same error. The first one prints it, and torchrun
    ends the others while they wait.
    """
    if rank():
        time.sleep(FIRST_SECONDS)


app.command()(fit_command.fit)
app.command("eval")(measure_commands.evaluate)
app.command()(measure_commands.compare)
app.command(context_settings={"allow_extra_args": True})(reproduce_command.reproduce)
app.command()(predict_command.predict)
app.command()(ask_command.ask)
app.command()(answer_command.answer)
app.command(context_settings={"allow_extra_args": True})(budget_command.budget)


@app.command()
def report(
    run: RunArgument,
    images: Annotated[int, typer.Option(min=0, help="Number of images to show; 0 for none.")] = 24,
    log: LogOption = Log.text,
) -> None:
    """Write RUN/report.html: figures, pictures, curves and protocols of a run in one file.

    Of a folder of fit --seeds: mean, deviation and interval of every figure.

    Example: wsss-trainer report runs/photos --images 200
    """
    from trainer.seed_folder import is_seed_folder

    if is_seed_folder(run):
        from trainer.report.seeds_page import write_seeds_report

        print(write_seeds_report(run))
        return
    from trainer.report.run_page import write_report

    print(write_report(run, images))


@app.command()
def pictures(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(help="Page. Default: RUN/pictures.html.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    log: LogOption = Log.text,
) -> None:
    """Draw what a method learnt, as its paper shows it.

    sc_cam and subcategory_teaching: the weights of both heads in the plane. vwe: image patches of
    each visual word. fmix_cam: masks and mixed images.

    Example: wsss-trainer pictures runs/vwe
    """
    from trainer.outputs import check_file
    from trainer.report.method_pictures import write_pictures

    if out:
        check_file(out, option="--out")
    print(write_pictures(run, out, device))


app.command()(export_command.export)
app.command()(data_commands.check)
app.command()(data_commands.split)
app.command()(data_commands.convert)
app.command()(data_commands.synth)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Folder for all files of the demo.")] = Path(
        "demo"
    ),
    json_: Json = False,
) -> None:
    """Show the whole path on synthetic scenes, in about 3 minutes on two cores.

    The demo runs synth, fit, export, serve, segment and label, and prints each command as you would
    type it.

    Example: wsss-trainer demo demo/
    """
    from trainer.commands.demo import run_demo

    result = run_demo(folder, say)
    if json_:
        print(json.dumps(result, indent=1))


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="A method, to list its knobs.")] = None,
    json_: Json = False,
) -> None:
    """List the methods, or the knobs and presets of one method.

    Example: wsss-trainer methods cam
    """
    from trainer.commands.catalogue import describe_method, list_methods, print_catalogue

    value: Any = list_methods() if name is None else describe_method(name)
    if json_:
        print(json.dumps(value, indent=1))
    else:
        print_catalogue(value)


if __name__ == "__main__":
    main()
