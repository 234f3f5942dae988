"""`python scripted_server.py [SETTING=JSON…]`: the HTTP API over a ScriptedService, in a process of its own.

Prints the base URL when it listens. For tests of signals and for load from outside the process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    import uvloop

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from penstock.api.app import create_app
    from penstock.api.server import serve_app
    from penstock.config import ServerSettings, build
    from penstock.observe import log
    from support.scripted_service import ScriptedService

    log.setup("info")
    settings = build(
        ServerSettings,
        **{"port": 0, **{k: json.loads(v) for k, v in (a.split("=", 1) for a in sys.argv[1:])}},
    )

    async def main() -> None:
        app = create_app(ScriptedService(), settings)
        await serve_app(app, settings, lambda url: print(url, flush=True))

    uvloop.run(main())
