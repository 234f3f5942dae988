"""From a method's name and a checkpoint's folder to its draft network."""

from __future__ import annotations

from pathlib import Path

from penstock.errors import ModelRefused
from penstock.models.arch.config import Config
from penstock.models.drafters import dflash, eagle, mtp
from penstock.models.drafters.network import DraftNetwork, Target
from penstock.models.weights.source import open_source


def layers_of(method: str, path: Path, num_layers: int) -> tuple[int, ...]:
    """Layers of a target of `num_layers` whose results the network reads; reads headers only."""
    source = open_source(path)
    config = Config(source.config)
    source.close()
    match method:
        case "dflash":
            return dflash.captured_layers(config, num_layers)
        case "eagle":
            return eagle.captured_layers(config, num_layers)
        case "mtp":
            return mtp.captured_layers(num_layers)
    raise ModelRefused(f"speculation.method: no draft network is called {method!r}")


def open_network(method: str, path: Path, target: Target, context: int) -> DraftNetwork:
    """The loaded network; `context` is the longest that will be served."""
    match method:
        case "dflash":
            return dflash.DflashNetwork(path, target, context)
        case "eagle":
            return eagle.EagleNetwork(path, target, context)
        case "mtp":
            return mtp.MtpNetwork(path, target, context)
    raise ModelRefused(f"speculation.method: no draft network is called {method!r}")
