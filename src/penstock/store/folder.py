"""Where Penstock keeps data: `$XDG_DATA_HOME/penstock` (default ~/.local/share/penstock)."""

from __future__ import annotations

import os
from pathlib import Path

FILE = "penstock.db"


def data_folder() -> Path:
    """It need not exist. A relative XDG_DATA_HOME counts as unset (as XDG demands)."""
    data_home = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data_home.is_absolute():
        data_home = Path.home() / ".local" / "share"
    return data_home / "penstock"
