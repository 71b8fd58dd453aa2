"""Whole clusters in network namespaces, on one machine and without root; see lab.py for the library."""
