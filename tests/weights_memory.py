"""Loads audio weights and prints the anonymous memory it took, as a share of the file. Run as a program, so that nothing else counts."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("multitalk_tools_pack", ROOT / "tools" / "environment" / "pack.py")
pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
pack.register_pack()
pack.start_comfy()

from multitalk_nodes.comfy_bridge.weights import load_weights


def anonymous() -> int:
    """Bytes of this process that lie in memory and in no file."""
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(told["RssAnon"].split()[0]) * 1024


if __name__ == "__main__":
    load_weights(sys.argv[1], "infinitetalk")  # what is imported and made once
    before = anonymous()
    loaded = load_weights(sys.argv[2], "infinitetalk")
    print((anonymous() - before) / Path(sys.argv[2]).stat().st_size)
