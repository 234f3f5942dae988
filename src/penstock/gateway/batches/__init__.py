"""Batches: many calls in one request, answered when nobody waits, whoever dies meanwhile."""
