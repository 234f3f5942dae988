"""The benchmark suite behind `make bench` (`benchmarks/run.py`): engines, scenarios, alternation, report."""
