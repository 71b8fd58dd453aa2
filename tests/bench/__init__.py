"""Benchmarks. Each prints a table with ratios to a named peer or baseline measured in the same run."""
