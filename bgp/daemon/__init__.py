"""`python -m bgp`: the speaker as a daemon of its own, and the commands that ask it. Standard library only."""
