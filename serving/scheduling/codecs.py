"""Threads that decode images and encode masks, shared by all models of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serving.errors import MemoryFull
from serving.scheduling.cpus import available_cpus
from serving.scheduling.memory import Memory

T = TypeVar("T")


class Codecs:
    """One thread per processor, and the memory budget that all requests share."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        # More threads would gain nothing: decoders and encoders release the GIL and keep a
        # processor busy.
        self._threads = ThreadPoolExecutor(available_cpus(), thread_name_prefix="codec")

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """``work(*arguments)`` in a thread. A caller who leaves before it begins costs nothing.

        Raises:
            MemoryFull: the process gets no more memory.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, work, *arguments)
        except MemoryError as error:
            raise MemoryFull("no memory is left for the image", hint="again later") from error

    def close(self) -> None:
        """Begin nothing more, and abandon what runs: no decoder is waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
