"""The tables, as the newest migration leaves them.

A thread is a list of items. Where two responses go on from the same one, the second gets a thread of its own
that begins behind `parent_end` items of its parent: nothing is copied. A response is a range of its thread:
its input, then its output. A conversation is a thread by the same id.
"""

from __future__ import annotations

from sqlalchemy import Boolean, Column, ForeignKey, Integer, MetaData, String, Table, Text

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
