"""Threads of items, and the responses and conversations that are ranges of them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "threads",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(255), nullable=False),
        sa.Column("parent", sa.String(64), sa.ForeignKey("threads.id"), index=True),
        sa.Column("parent_end", sa.Integer, nullable=False),
        sa.Column("length", sa.Integer, nullable=False),
        sa.Column("is_conversation", sa.Boolean, nullable=False),
    )
    op.create_table(
        "items",
        sa.Column("thread", sa.String(64), sa.ForeignKey("threads.id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(255), nullable=False, index=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "responses",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(255), nullable=False),
        sa.Column("thread", sa.String(64), sa.ForeignKey("threads.id"), nullable=False, index=True),
        sa.Column("input_start", sa.Integer, nullable=False),
        sa.Column("output_start", sa.Integer, nullable=False),
        sa.Column("end", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Integer, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "conversations",
        sa.Column("id", sa.String(64), sa.ForeignKey("threads.id"), primary_key=True),
        sa.Column("tenant", sa.String(255), nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("created_at", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    for table in ("conversations", "responses", "items", "threads"):
        op.drop_table(table)
