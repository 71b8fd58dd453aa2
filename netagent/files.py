"""Writing small state files so that a crash at any instant leaves the old content or the new, never a part.

Rule: whatever netagent keeps on disk is written by `replace` and may be missing, old or damaged when it is read.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def replace(path: Path, data: bytes, *, mode: int = 0o644, sync: bool = True) -> None:
    """Write `data` beside `path` and rename it into place, making the directory if there is none.

    `sync` waits for the disk, for what must survive a power cut. OSError names the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if sync:
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
