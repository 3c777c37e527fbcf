"""Each system's headline claim, shown by an experiment of our own: `selftaught claim NAME`."""

from collections.abc import Callable, Mapping
from pathlib import Path

from selftaught.claims import blur, bmg, bmssl, clip, dmsa, fcrl, hegr, maxl, moss, neuronml, pfl, review, split
from selftaught.claims.outcome import Outcome

CLAIMS: Mapping[str, Callable[[bool], Outcome]] = {
    "bmssl": bmssl.show,
    "split": split.show,
    "bmg": bmg.show,
    "review": review.show,
    "neuronml": neuronml.show,
    "maxl": maxl.show,
    "fcrl": fcrl.show,
    "blur": blur.show,
    "clip": clip.show,
    "hegr": hegr.show,
    "dmsa": dmsa.show,
    "moss": moss.show,
    "pfl": pfl.show,
}
"""Every claim; the argument asks for a quick version that shows the direction only. A new claim is a line here."""

PAGES: Mapping[str, Callable[[Path, bool], None]] = {"hegr": hegr.write_scenes}
"""Claims with examples to look at: writes them to an HTML file; the second argument asks for the quick version."""

__all__ = ["CLAIMS", "PAGES", "Outcome"]
