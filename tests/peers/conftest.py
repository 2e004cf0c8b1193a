from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from peer_world import build_hub


@pytest.fixture(scope="session")
def hub() -> Iterator[Path]:
    """A registry's content, built once for every world that gets a copy."""
    with tempfile.TemporaryDirectory(prefix=f"skt{os.getpid()}-") as folder:
        build_hub(Path(folder))
        yield Path(folder)
