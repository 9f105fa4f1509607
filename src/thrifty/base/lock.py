"""One run at a time in a folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thrifty.base.errors import InputError

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold `folder`, which need not exist, for the body. The system lets go of it when the process ends, however that happens.

    Raises InputError when another run on this machine holds it.
    """
    name = hashlib.sha256(os.path.realpath(folder).encode()).hexdigest()[:32]
    try:
        file = (Path(tempfile.gettempdir()) / f"thrifty-{name}.lock").open("w")
    except OSError:  # another user's, or no place for it: then nothing is known of others
        yield
        return
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another run is at work in {folder}; wait for it, or choose another --out") from None
            except OSError:  # a file system without locks
                pass
        yield
