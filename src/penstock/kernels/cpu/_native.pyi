"""Types of the native module (native/module.cpp says what each thing means)."""

from typing import Any

def __getattr__(name: str) -> Any: ...
