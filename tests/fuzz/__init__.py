"""Fuzzing of whatever reads bytes that others wrote: `make fuzz` with coverage guidance, `make test` over the corpus.

Rule: a target states what must hold for any bytes at all, not only that nothing is raised. Nothing in here needs the
fuzzing engine but engine.py, so that `make test` runs every target without it.
"""
