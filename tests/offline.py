"""Run a command with no network but a name server that knows nothing and notes who asks:
``unshare --net --mount python tests/offline.py NAMES COMMAND...``.

``NAMES`` is the file to which each name that was asked for is written, a line each.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
HEADER = 12


def main() -> int:
    names, command = Path(sys.argv[1]), sys.argv[2:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
    with tempfile.NamedTemporaryFile("w") as resolver:
        resolver.write("nameserver 127.0.0.1\n")
        resolver.flush()
        target = str(Path("/etc/resolv.conf").resolve())
        subprocess.run(["mount", "--bind", resolver.name, target], check=True)
        threading.Thread(target=note, args=(names,), daemon=True).start()
        return subprocess.run(command, check=False).returncode


def note(names: Path) -> None:
    """Answer every question with "no such name"."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, names.open("a") as file:
        server.bind(("127.0.0.1", 53))
        while True:
            question, caller = server.recvfrom(4096)
            file.write(f"{name(question)}\n")
            file.flush()
            server.sendto(question[:2] + b"\x81\x83" + question[4:], caller)


def name(question: bytes) -> str:
    """The name in a question of DNS: its labels, each after its length."""
    labels, at = [], HEADER
    while size := question[at]:
        labels.append(question[at + 1 : at + 1 + size].decode(errors="replace"))
        at += 1 + size
    return ".".join(labels)


if __name__ == "__main__":
    sys.exit(main())
