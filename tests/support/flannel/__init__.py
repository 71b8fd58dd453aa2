"""The parts of the stand-in for flanneld (tests/support/flanneld.py). Rule: nothing of netagent is imported here."""
