"""Durable state: one SQL layer over SQLite or PostgreSQL. A leaf: it imports no layer."""
