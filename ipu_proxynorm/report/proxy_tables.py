"""How far channels are from the proxies that Proxy Norm assumes, as tables."""

from __future__ import annotations

from typing import Dict, List, Tuple

from ipu_proxynorm.analysis import DISTANCES, ProxyDistance

#: For each network with Proxy Norm, the distance in each of its layers.
Distances = Dict[str, Dict[str, ProxyDistance]]

DISTANCE_COLUMNS = ("norm", "layer", *(name.replace("_", " ") for name in DISTANCES))

#: What the columns are, for the page.
EXPLANATION = [
    "Proxy Norm assumes that each channel of the pre-activation is the Gaussian of its proxy. How "
    "far it is, as root mean square over channels, over all images and places: "
    + "; ".join(f"{name.replace('_', ' ')}: {text}" for name, text in DISTANCES.items())
    + "."
]


def distance_rows(distances: Distances) -> List[Tuple[str, ...]]:
    """Return every layer of every network as text, by `DISTANCE_COLUMNS`."""
    return [
        (norm, layer, *(f"{getattr(distance, name):.3f}" for name in DISTANCES))
        for norm, found in distances.items()
        for layer, distance in found.items()
    ]
