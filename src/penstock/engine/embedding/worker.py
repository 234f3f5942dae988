"""The worker process: one embedding model between two pipes.

    python -m penstock.engine.embedding.worker --model NAME [--threads N] [--backend NAME]

Reads frames from stdin, writes frames to stdout (see messages.py), logs to stderr. It ends when stdin does,
so with its parent, however that died.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import os
import signal
import sys
from typing import BinaryIO

from penstock.engine.embedding.messages import LENGTH, Done, Failed, ToGateway, frame, read_batch
from penstock.engine.embedding.model import EmbeddingModel, open_embedding_model
from penstock.errors import PenstockError

log = logging.getLogger("penstock.engine.embedding")


def serve(model: EmbeddingModel, source: BinaryIO, sink: BinaryIO) -> None:
    """Answer batches until `source` ends."""
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        (size,) = LENGTH.unpack(head)
        batch = read_batch(source.read(size))
        try:
            _write(sink, Done(model.run(batch.task, batch.texts()).tobytes()))
        except PenstockError as error:
            _write(sink, Failed(error.kind, error.message))


def _write(sink: BinaryIO, message: ToGateway) -> None:
    sink.write(frame(message))
    sink.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="penstock.engine.embedding.worker")
    parser.add_argument("--model", required=True)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(levelname)s %(name)s: %(message)s")
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the gateway's to handle
    # Whatever prints must not end up between frames.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        model = open_embedding_model(options.model, options.backend, options.threads)
    except PenstockError as error:
        log.error("%s", error.message)
        _write(sink, Failed(error.kind, error.message, error.code))
        return 1
    _write(sink, model.describe)
    gc.collect()
    gc.freeze()
    serve(model, sys.stdin.buffer, sink)
    return 0


if __name__ == "__main__":
    sys.exit(main())
