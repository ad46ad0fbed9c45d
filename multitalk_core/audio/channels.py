"""Which loudspeaker a channel is meant for, and how surround sound becomes stereo.

Names are FFmpeg's (FL is front left); a recording whose channels have no names has an empty tuple of them.
"""

from __future__ import annotations

from collections.abc import Sequence

STEREO = 2
_SIDE = 0.5**0.5  # −3 dB; ITU-R BS.775-3, annex 4, table 2
_BEHIND = 0.5  # one loudspeaker behind, on both sides: −3 dB of what is −3 dB already; same table
# Channel → share of it on the left and on the right. The low-frequency channel is left out: it repeats what the others hold.
GAINS: dict[str, tuple[float, float]] = {
    **{"FL": (1, 0), "FR": (0, 1), "FC": (_SIDE, _SIDE), "LFE": (0, 0), "LFE2": (0, 0), "BC": (_BEHIND, _BEHIND)},
    **{"BL": (_SIDE, 0), "BR": (0, _SIDE), "SL": (_SIDE, 0), "SR": (0, _SIDE), "WL": (_SIDE, 0), "WR": (0, _SIDE)},
    **{"FLC": (_SIDE, _BEHIND), "FRC": (_BEHIND, _SIDE), "DL": (1, 0), "DR": (0, 1)},
    **{"TFL": (_SIDE, 0), "TFR": (0, _SIDE), "TSL": (_SIDE, 0), "TSR": (0, _SIDE), "TBL": (_SIDE, 0), "TBR": (0, _SIDE)},
    **{"TFC": (_BEHIND, _BEHIND), "TBC": (_BEHIND, _BEHIND), "TC": (_BEHIND, _BEHIND), "BFC": (_BEHIND, _BEHIND)},
    **{"BFL": (_SIDE, 0), "BFR": (0, _SIDE), "AMBI0": (1, 1)},
}
_DIRECTIONS = tuple(f"AMBI{i}" for i in range(1, 16))  # of ambisonics: differences, without which the sound is whole
GAINS |= dict.fromkeys(_DIRECTIONS, (0.0, 0.0))
# What sounds of so many channels are where nothing says what they are: the order of WAV, FLAC and FFmpeg.
USUAL = {
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}


def stereo_gains(names: Sequence[str]) -> list[list[float]] | None:
    """How much of each channel is heard on the left (first row) and on the right; None for mono, stereo, and unknown channels."""
    if len(names) <= STEREO or not all(name in GAINS for name in names):
        return None
    return [[float(GAINS[name][side]) for name in names] for side in range(STEREO)]
