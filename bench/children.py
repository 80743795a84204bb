"""Python processes that a program starts to measure in: one that answers once, and one that answers
each line.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping


def output(*words: object) -> str:
    """What Python prints with these words; its stderr goes through.

    Raises:
        SystemExit: the process failed, and has said why.
    """
    command = [sys.executable, *map(str, words)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode:
        raise SystemExit(process.returncode)
    return process.stdout


class Child:
    """A process that answers each line on its stdin with a number on its stdout.

    Args:
        words: of the command, after ``python``.
        env: its environment.
    """

    def __init__(self, words: list[str], env: Mapping[str, str]) -> None:
        # Progress goes there, and is shown only if the process fails. It is open until `stop`.
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, *words],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def ask(self, question: object) -> None:
        """Send a line."""
        assert self.process.stdin
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()

    def answer(self) -> float:
        """Wait for the next number.

        Raises:
            SystemExit: the process ended instead.
        """
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise SystemExit(f"a process ended without its answer:\n{self.errors.read()[-4000:]}")
        return float(line)

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()
