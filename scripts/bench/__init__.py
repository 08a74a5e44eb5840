"""Benchmarks, one module per question. Run them from the root of the repository: `python -m scripts.bench.reading`."""
