"""Benchmarks: workloads (fixed shapes, public traces), one driver, one set of metrics, one report."""
