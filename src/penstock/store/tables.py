"""The tables, as the newest migration leaves them.

A thread is a list of items. Where two responses go on from the same one, the second gets a thread of its own
that begins behind `parent_end` items of its parent: nothing is copied. A response is a range of its thread:
its input, then its output. A conversation is a thread by the same id.

A file is its chunks, or the results of a batch's lines: those are never copied. A batch has a line per
request; a line's request is forgotten when its result is there.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

threads = Table(
    "threads",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(255), nullable=False),
    Column("parent", String(64), ForeignKey("threads.id"), index=True),
    Column("parent_end", Integer, nullable=False),
    Column("length", Integer, nullable=False),  # position of the next item
    Column("is_conversation", Boolean, nullable=False),
)

items = Table(
    "items",
    metadata,
    Column("thread", String(64), ForeignKey("threads.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("id", String(255), nullable=False, index=True),
    Column("body", Text, nullable=False),  # JSON of the item
)

responses = Table(
    "responses",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(255), nullable=False),
    Column("thread", String(64), ForeignKey("threads.id"), nullable=False, index=True),
    Column("input_start", Integer, nullable=False),
    Column("output_start", Integer, nullable=False),
    Column("end", Integer, nullable=False),
    Column("created_at", Integer, nullable=False),  # Unix seconds
    Column("body", Text, nullable=False),  # JSON of the response object
)

conversations = Table(
    "conversations",
    metadata,
    Column("id", String(64), ForeignKey("threads.id"), primary_key=True),
    Column("tenant", String(255), nullable=False),
    Column("metadata", Text, nullable=False),  # JSON object
    Column("created_at", Integer, nullable=False),  # Unix seconds
)

files = Table(
    "files",
    metadata,
    Column("number", Integer, primary_key=True),  # in the order of creation
    Column("id", String(64), nullable=False, unique=True),
    Column("tenant", String(255), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Integer, nullable=False),  # Unix seconds
    Column("expires_at", Integer),  # Unix seconds
    Column("is_complete", Boolean, nullable=False),
    Column("batch", String(64)),  # whose results it holds
    Column("holds_errors", Boolean, nullable=False),  # … those that are no answers
)

file_chunks = Table(
    "file_chunks",
    metadata,
    Column("file", String(64), ForeignKey("files.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("number", Integer, primary_key=True),  # in the order of creation
    Column("id", String(64), nullable=False, unique=True),
    Column("tenant", String(255), nullable=False),
    Column("api", String(16), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("status", String(16), nullable=False, index=True),
    Column("times", Text, nullable=False),  # JSON object: status -> Unix seconds when it was reached
    Column("created_at", Integer, nullable=False),  # Unix seconds
    Column("expires_at", Integer, nullable=False),  # Unix seconds
    Column("metadata", Text, nullable=False),  # JSON object
    Column("errors", Text, nullable=False),  # JSON list: why it failed
    Column("model", String(255)),  # None: not known yet, or several
    Column("input_file", String(64)),
    Column("output_file", String(64)),
    Column("error_file", String(64)),
    Column("output_ttl_s", Integer),  # of output_file and error_file
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("owner", String(64), nullable=False),  # the server that runs it, "" for none
    Column("lease_until", Double, nullable=False),  # Unix seconds; later it is anybody's
)

batch_lines = Table(
    "batch_lines",
    metadata,
    Column("batch", String(64), ForeignKey("batches.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("custom_id", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("request", Text),  # JSON body; None once there is a result
    Column("result", Text),  # the line of the output
    Column("bytes", Integer, nullable=False),  # of the result, with its newline
    Index("ix_batch_lines_state", "batch", "state", "number"),
)
