"""Named text that every machine has: documentation strings of Python's standard library.

Which passages a run saw follows from the Python version alone; `digest` of the report tells two
versions apart.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from types import ModuleType
from typing import Any

from penstock.errors import ConfigError

MIN_CHARS = 300
MODULES = (
    "argparse", "ast", "asyncio.events", "asyncio.streams", "asyncio.tasks", "base64", "bdb", "bisect",
    "calendar", "codecs", "collections", "concurrent.futures._base", "configparser", "contextlib", "copy",
    "csv", "dataclasses", "datetime", "difflib", "dis", "doctest", "email.message", "email.policy", "enum",
    "fileinput", "fractions", "ftplib", "functools", "gettext", "glob", "hashlib", "heapq", "html.parser",
    "http.client", "http.cookiejar", "http.server", "imaplib", "inspect", "ipaddress", "json",
    "json.decoder", "json.encoder", "locale", "logging", "logging.config", "logging.handlers", "mailbox",
    "mimetypes", "multiprocessing.pool", "numbers", "optparse", "os", "pathlib", "pickle", "pickletools",
    "platform", "plistlib", "poplib", "pprint", "profile", "pstats", "queue", "random", "re", "reprlib",
    "sched", "secrets", "selectors", "shelve", "shlex", "shutil", "smtplib", "socket", "socketserver",
    "statistics", "string", "subprocess", "sysconfig", "tarfile", "tempfile", "textwrap", "threading",
    "timeit", "tokenize", "trace", "traceback", "types", "unittest.case", "unittest.loader",
    "unittest.mock", "urllib.parse", "urllib.request", "uuid", "warnings", "wave", "weakref",
    "xml.dom.minidom", "xml.etree.ElementTree", "xmlrpc.client", "zipfile",
)  # fmt: skip


def passages(count: int) -> list[str]:
    """`count` documentation strings of at least MIN_CHARS characters, spread evenly over all that there
    are, by name. ConfigError if there are fewer."""
    found: dict[str, str] = {}
    for name in MODULES:
        module = import_module(name)
        for path, thing in [(name, module), *_documented(module)]:
            doc = getattr(thing, "__doc__", None)
            text = inspect.cleandoc(doc) if isinstance(doc, str) else ""
            if len(text) >= MIN_CHARS:
                found.setdefault(text, path)
    texts = sorted(found, key=lambda text: (found[text], text))
    if not 1 <= count <= len(texts):
        raise ConfigError(
            f"passages: {count} is outside 1 to {len(texts)}, what this Python's documentation strings hold"
        )
    return [texts[i * len(texts) // count] for i in range(count)]


def _documented(module: ModuleType) -> list[tuple[str, Any]]:
    """(dotted name, object) of the module's own public classes and functions, and of their methods."""
    found: list[tuple[str, Any]] = []
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        found.append((f"{module.__name__}.{name}", thing))
        if inspect.isclass(thing):
            found += [
                (f"{module.__name__}.{name}.{member}", value)
                for member, value in vars(thing).items()
                if not member.startswith("_") and callable(getattr(value, "__func__", value))
            ]
    return found
