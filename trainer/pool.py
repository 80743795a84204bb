"""One function over many images, on all cores and in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Sized,
)
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from trainer.cores import cores, own_cores, use_all_cores
from trainer.errors import DataError, RunError, UserError, explained
from trainer.progress import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")

CORE_PIXELS = 250_000
"""What a core may always work on: a photograph as large as VOC's."""

_function: Callable[[Any], Any]


@dataclass(frozen=True)
class Work:
    """What bounds the memory of a pool whose items differ in size.

    Attributes:
        of: pixels of an item.
        pixels: in all workers together, at most, where that is more than ``CORE_PIXELS`` a core;
            one item is always worked on.
    """

    of: Callable[[Any], int]
    pixels: int


def over_images(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int | None = None,
    title: str = "",
    progress: bool = False,
    name: Callable[[Item], str] = str,
    total: int | None = None,
    limit: Work | None = None,
) -> Iterator[tuple[Item, Result | UserError]]:
    """Yield ``(item, function(item))`` in the order of ``items``.

    ``function`` (with whatever it binds) travels to each worker once, items travel one by one, and
    only a few results wait at a time, so memory does not grow with the number of images. A
    ``UserError`` is yielded in place of the result, so that one bad image does not lose the others.

    Args:
        function: something picklable, for example ``functools.partial`` of a module function.
        items: what to work on; taken as they are needed, in this process.
        workers: processes; None for one a core; 0 or 1 for none at all, everything in this process.
        title: what the progress bar says.
        progress: show the bar, on stderr.
        name: how an item is called in messages.
        total: how many items there are; None to ask ``items``.
        limit: bounds what all workers have at once; None where items are small.

    Raises:
        RunError: a worker was killed, usually for memory.
        RuntimeError: any other failure, naming the image.
    """
    if total is None:
        total = len(items) if isinstance(items, Sized) else sys.maxsize
    count = min(cores() if workers is None else workers, total)
    results = (
        _in_process(function, items) if count <= 1 else _in_pool(function, items, count, limit)
    )
    with closing(results), progress_bar(title, total, progress) as advance:
        for item, result, error in results:
            if isinstance(error, BrokenProcessPool):
                raise RunError(
                    f"a worker process was killed near image {name(item)!r}",
                    "enough memory for every worker",
                    f"use fewer workers than {count}, then run the same command again",
                ) from error
            if isinstance(error, UserError):
                yield item, error
            elif error is not None and (cause := explained(error)):
                raise RunError(f"image {name(item)!r}: {cause.found}", "", cause.hint) from error
            elif error is not None:
                raise RuntimeError(f"image {name(item)!r}: {error}") from error
            else:
                yield item, result
            advance()


def each_image(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    what: str,
    workers: int | None = None,
    title: str = "",
    progress: bool = False,
    name: Callable[[Item], str] = str,
    limit: Work | None = None,
) -> list[Result]:
    """``work`` on every item; all that can be done is done before the errors of single images are
    raised together.

    Args:
        work: see ``over_images``.
        items: one an image.
        what: of the error, for example "masks could not be made".
        workers: see ``over_images``.
        title: see ``over_images``.
        progress: show the bar.
        name: see ``over_images``.
        limit: see ``over_images``.

    Raises:
        DataError: of single images, listed.
        RunError: no space left or a killed worker, at once.
    """
    problems: list[UserError] = []
    results: list[Result] = []
    for _, outcome in over_images(work, items, workers, title, progress, name, limit=limit):
        if isinstance(outcome, RunError):
            raise outcome
        if isinstance(outcome, UserError):
            problems.append(outcome)
        else:
            results.append(outcome)
    raise_together(problems, len(items), what)
    return results


def raise_together(problems: Sequence[UserError], total: int, what: str) -> None:
    """Raise one ``DataError`` that lists the errors of single images, if there are any."""
    if problems:
        raise joined(problems, total, what)


def joined(problems: Sequence[UserError], total: int, what: str) -> DataError:
    """One error that lists those of single images."""
    listing = "".join(f"\n  {problem.found}" for problem in problems[:10])
    more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
    return DataError(
        f"{len(problems)} of {total} {what}:{listing}{more}",
        problems[0].expected or "a readable file of the right size for every image",
        problems[0].hint or "repair or make those files and run the same command again",
    )


def _in_process(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Generator[tuple[Item, Any, BaseException | None], None, None]:
    for item in items:
        yield _attempt(function, item)


def _attempt(
    function: Callable[[Item], Result], item: Item
) -> tuple[Item, Any, BaseException | None]:
    try:
        return item, _named(function, item), None
    except Exception as error:
        return item, None, error


def _in_pool(
    function: Callable[[Item], Result], items: Iterable[Item], count: int, limit: Work | None
) -> Generator[tuple[Item, Any, BaseException | None], None, None]:
    methods = multiprocessing.get_all_start_methods()
    # Not fork: a forked copy of a process that has used OpenMP threads (torch) can hang.
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        # Imported once by the server, of which every worker is a fork.
        context.set_forkserver_preload(
            ["trainer.evaluation.over_lists", "trainer.refine.pseudo_masks"]
        )
    pool = ProcessPoolExecutor(
        count, mp_context=context, initializer=_start_worker, initargs=(function, own_cores())
    )
    owner = threading.current_thread()
    try:
        waiting: deque[tuple[Item, Future[Any]]] = deque()
        weights: dict[Future[Any], int] = {}
        for item in items:
            weight = limit.of(item) if limit else 0
            # Results leave in order. With some in reserve, the others go on while a slow item holds
            # them up.
            while len(waiting) >= 4 * count or (limit and _full(weights, weight, limit, count)):
                yield _outcome(*waiting.popleft())
            waiting.append((item, _submit(pool, item)))
            weights = {f: w for f, w in weights.items() if not f.done()}
            weights[waiting[-1][1]] = weight
        while waiting:
            yield _outcome(*waiting.popleft())
    finally:
        # A loop that was left early is closed by the garbage collection, which runs in any thread:
        # also in the pool's own, which cannot wait for itself.
        pool.shutdown(wait=threading.current_thread() is owner, cancel_futures=True)


def _full(weights: Mapping[Future[Any], int], weight: int, limit: Work, count: int) -> bool:
    """Whether one more item beside those that are not done yet would be above ``limit``."""
    busy = sum(other for future, other in weights.items() if not future.done())
    # One item may always run, however large it is.
    return busy > 0 and busy + weight > max(limit.pixels, count * CORE_PIXELS)


def _submit(pool: ProcessPoolExecutor, item: Item) -> Future[Any]:
    try:
        return pool.submit(_work, item)
    except BrokenProcessPool as error:
        # A worker may die between two submissions: the items before this one still have their turn.
        broken: Future[Any] = Future()
        broken.set_exception(error)
        return broken


def _outcome(item: Item, future: Future[Any]) -> tuple[Item, Any, BaseException | None]:
    error = future.exception()
    return (item, None, error) if error else (item, future.result(), None)


def _start_worker(function: Callable[[Any], Any], own: Collection[int]) -> None:
    global _function
    _function = function
    # The server that forks the workers may have been started on one core.
    use_all_cores(own)
    # Ctrl-C reaches every process of the terminal. The parent alone decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A parent that was killed cannot end its workers.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # One process a core already: threads inside them would only fight for the same cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(item: Any) -> Any:
    return _named(_function, item)


def _named(function: Callable[[Item], Result], item: Item) -> Result:
    """``function(item)``; what is no ``UserError`` becomes one kind of exception."""
    try:
        return function(item)
    except UserError:
        raise
    except Exception as error:
        # Not every exception survives the way to the parent.
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
