"""Benchmarks: the daemon against the raw libraries, side by side in one run. `python -m tests.bench`, `make bench`.

Absolute figures move between machines and hours; what is bounded are ratios of runs that took turns, and sizes.
Reading order: `figures` (rows, bounds, the table), `daemons` and `opponents` (who is measured, against whom), then a
module a bench. `*_process` modules run on their own.
"""
