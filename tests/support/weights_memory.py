"""Load audio weights and print the anonymous memory it took, as a share of the file. Run as a program, so that nothing else counts."""

import sys
from pathlib import Path

from ...tools.launch import start_comfy

start_comfy()

from multitalk_nodes.comfy_bridge.weights import load_weights


def anonymous() -> int:
    """Bytes of this process that lie in memory and in no file."""
    data = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(data["RssAnon"].split()[0]) * 1024


def main() -> int:
    load_weights(sys.argv[1], "infinitetalk")  # what is imported and made once
    before = anonymous()
    loaded = load_weights(sys.argv[2], "infinitetalk")
    taken = anonymous() - before
    del loaded
    print(taken / Path(sys.argv[2]).stat().st_size)
    return 0
