"""Whole clusters under simulated time, small: the benchmark `bgp-scale` in little, and what its counts must be."""

from __future__ import annotations

from tests.bench.bgp_scale import mesh, reflected, simulate


def test_reflectors_need_as_many_sessions_as_there_are_nodes_for_each() -> None:
    nodes, reflectors = 25, 4
    outcome = simulate(list(reflected(nodes, reflectors)))
    assert outcome.sessions == nodes * reflectors + reflectors * (reflectors - 1) // 2
    assert outcome.seconds < 5
    assert outcome.failure < 1
    # Each reflector tells each client of each other node at most twice: its first choice, and a better one.
    assert outcome.updates < 2.5 * reflectors * nodes * (nodes + reflectors)


def test_a_mesh_costs_the_square() -> None:
    small, large = simulate(list(mesh(10))), simulate(list(mesh(20)))
    assert (small.sessions, large.sessions) == (45, 190)
    assert large.updates / small.updates == (20 * 19 * 2) / (10 * 9 * 2)  # a route and an End-of-RIB, each way
    assert large.seconds < 5


def test_equal_seeds_give_equal_runs() -> None:
    runs = [simulate(list(reflected(10, 2)), seed=3) for _ in range(2)]
    assert len({(run.messages, run.updates, run.megabytes, run.seconds, run.failure) for run in runs}) == 1
