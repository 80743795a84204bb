"""The code blocks of the pages: what they hold, and whether they need what is not here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "exported/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(
    r"^(?:<!-- needs: (?P<needs>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<body>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
COMMANDS = ("wsss-trainer ", "wsss-serving ", "make ", "python bench/")


@dataclass(frozen=True)
class Block:
    """A code block; ``needs`` names data or hardware, and is empty where it can run here."""

    page: str
    needs: str
    language: str
    body: str

    @property
    def lines(self) -> list[str]:
        """Our commands, continued lines joined."""
        if self.language:
            return []
        whole = self.body.replace("\\\n", " ").splitlines()
        return [" ".join(line.split()) for line in whole if line.startswith(COMMANDS)]


def blocks(page: Path) -> list[Block]:
    """Those that hold commands of ours, or Python."""
    name = str(page.relative_to(ROOT))
    every = [
        Block(name, match["needs"] or "", match["language"], match["body"])
        for match in FENCE.finditer(page.read_text(encoding="utf-8"))
    ]
    return [block for block in every if block.lines or block.language == "python"]


def every_line() -> list[str]:
    """All commands of all pages, each once."""
    return sorted({line for page in PAGES for block in blocks(page) for line in block.lines})
