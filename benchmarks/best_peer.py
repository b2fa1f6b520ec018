"""How much faster than the fastest other engine of the same number format, round by round.

Each round measures all contenders one after the other. Dividing two ratios to a common baseline
would add that baseline's own noise; here the two times of one round are divided, and the median of
the rounds is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.rounds import Sample, summarise


class Lead(NamedTuple):
    """A contender against its strongest peer on one workload.

    Attributes:
        ratio: the peer's time over the contender's: median of the undisturbed rounds.
        peer: its key.
        disturbed: whether too few rounds were undisturbed, and all were used.
    """

    ratio: float
    peer: str
    disturbed: bool


def over_best_peer(results: Mapping[str, Any], key: str, workload: str) -> Lead | None:
    """The smallest lead over any other engine of the contender's dtype; None without one.

    Args:
        results: of a file.
        key: a contender of this project.
        workload: a stage with samples.
    """
    known = results["contenders"]
    rounds = [
        {name: Sample((found["s"],), found["foreign"]) for name, found in entry.items()}
        for entry in results[workload].get("samples", ())
    ]
    leads = []
    for peer, about in known.items():
        if peer == key or about["minibert"] or about["dtype"] != known[key]["dtype"]:
            continue
        both = [entry for entry in rounds if key in entry and peer in entry]
        found = summarise(both, key, peer, amount=1)
        if found is not None:
            leads.append(Lead(found["ratio"]["median"], peer, found["disturbed"]))
    return min(leads, default=None)
