"""Files that are whole or not there, whoever else writes in the same folder and whatever is killed:
what checkpoints, pages, animations and the cache of boards are written with."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: no lock is held, and nothing is swept
    fcntl = None

PART = re.compile(r"\.fmlm-[0-9a-f]{16}\.part")  # a file that is being written
ABANDONED = 60  # seconds after which a file that nobody holds is one of a killed process


@contextlib.contextmanager
def written(path: Path, data: bytes | memoryview) -> Iterator[Path]:
    """A new file beside `path` that holds `data`, on the disk, to be renamed in the block; else it
    is gone after it. Raises OSError where the disk refuses."""
    _sweep(path.parent)
    part = path.with_name(f".fmlm-{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb") as file:  # x: no file is there, nor a link to one
            _lock(file.fileno())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:  # Windows renames no open file
                file.close()
            yield part
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def replace(path: Path, data: bytes) -> None:
    """Replace a file whole or not at all. OSError, in one sentence, where the disk refuses."""
    try:
        with written(path, data) as part:
            os.replace(part, path)
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror or error}): what it held before is "
                      "still there") from error


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A moment in which no other process of ours renames a file in this folder, where the system
    has locks. Who holds the lock for a second is not waited for: that process may be stopped."""
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        for _ in range(100 if fcntl else 0):
            if _lock(descriptor):
                break
            time.sleep(0.01)
        yield
    finally:
        if fcntl:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock an open file until it is closed. False where it cannot be, or another process has it."""
    with contextlib.suppress(OSError, AttributeError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left half written: who writes holds a lock."""
    with contextlib.suppress(OSError):
        for part in folder.iterdir():
            if (PART.fullmatch(part.name) and part.is_file() and not part.is_symlink()
                    and time.time() - part.stat().st_mtime > ABANDONED):
                with open(part, "rb") as file:
                    if _lock(file.fileno()):
                        part.unlink()
