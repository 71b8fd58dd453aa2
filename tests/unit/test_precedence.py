"""Routes that win over ours: one finding, however many there are."""

from __future__ import annotations

from netagent.kernel import precedence


def test_none_is_no_finding() -> None:
    assert precedence.findings([]) == []


def test_one_is_named_and_many_are_counted() -> None:
    routes = [f"10.5.{number}.0/24 via 192.168.50.77 dev eth0 proto static" for number in range(9)]
    (one,) = precedence.findings(routes[:1])
    assert (one.code, one.subject, one.evidence) == ("foreign-route-wins", "10.5.0.0/24", routes[0])
    (many,) = precedence.findings(routes)
    assert many.subject == "9 prefixes"
    assert many.evidence == "; ".join([*routes[:3], "..."])
