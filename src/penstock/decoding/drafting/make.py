"""The drafter that the settings name."""

from __future__ import annotations

from penstock.config import SpeculationSettings
from penstock.decoding.drafting.drafter import HostDrafter
from penstock.decoding.drafting.ngram import NgramDrafter
from penstock.decoding.drafting.suffix import SuffixDrafter


def make_drafter(settings: SpeculationSettings | None) -> HostDrafter | None:
    match settings:
        case None:
            return None
        case SpeculationSettings(method="ngram"):
            return NgramDrafter()
        case _:
            return SuffixDrafter()
