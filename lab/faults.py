"""`python dev.py faults --seed 7`: does the quick tier notice? Draws faults at random, puts each into a clone, and runs the tests there.

A fault turns a condition round, or exchanges an operator, in one place of one product module; no module gets two. The clone is of
the last commit, so the working folder is never touched. Tests that name the module run first, then the rest of the tier.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..tools.processes import leave_on_signals, started
from ..tools.testing import TOGETHER, share_of_cores

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("nodes", "comfy_bridge", "multitalk_core", "multitalk_client", "serverless")
OPERATORS = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*")}
OPERATORS |= {ast.Lt: ("<", ">="), ast.Gt: (">", "<="), ast.LtE: ("<=", ">"), ast.GtE: (">=", "<"), ast.Eq: ("==", "!=")}
OPERATORS |= {ast.NotEq: ("!=", "=="), ast.And: ("and", "or"), ast.Or: ("or", "and")}
PATIENCE = 1800  # s for a run of pytest; some faults make a loop go on for ever
UNTRIED = (ast.Raise, ast.JoinedStr, ast.Assert, ast.arguments)  # words, and what only tools read


@dataclass(frozen=True)
class Fault:
    """Bytes of one file that are replaced."""

    file: str
    start: int
    end: int
    after: bytes

    def apply(self, root: Path) -> str:
        """Change the file; the changed line or lines, before and after."""
        path = root / self.file
        source = path.read_bytes()
        changed = source[: self.start] + self.after + source[self.end :]
        path.write_bytes(changed)
        first = source.count(b"\n", 0, self.start)
        last = source.count(b"\n", 0, self.end)
        before, after = (text.split(b"\n")[first : last + 1] for text in (source, changed))
        shown = [f"    - {line.decode().strip()}" for line in before] + [f"    + {line.decode().strip()}" for line in after]
        return f"{self.file}:{first + 1}\n" + "\n".join(shown)


def faults_of(file: str, source: bytes) -> list[Fault]:
    """Every fault that can be put into a module."""
    starts = [0, *(match.end() for match in re.finditer(b"\n", source))]

    def span(node: ast.expr) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    found = []
    for node in _tried(ast.parse(source)):
        if isinstance(node, (ast.If, ast.IfExp, ast.While)):
            start, end = span(node.test)
            found.append(Fault(file, start, end, b"(not (" + source[start:end] + b"))"))
        for left, operator, right in _operations(node):
            if type(operator) in OPERATORS:
                old, new = (sign.encode() for sign in OPERATORS[type(operator)])
                start, end = span(left)[1], span(right)[0]
                between = source[start:end]
                is_path = isinstance(node, ast.BinOp) and isinstance(right, ast.Constant) and isinstance(right.value, str)
                if between.count(old) == 1 and not is_path:
                    found.append(Fault(file, start, end, between.replace(old, new)))
    return found


def _operations(node: ast.AST) -> list[tuple[ast.expr, ast.AST, ast.expr]]:
    """Two neighbours and what stands between them."""
    if isinstance(node, ast.BinOp):
        return [(node.left, node.op, node.right)]
    if isinstance(node, ast.BoolOp):
        return [(node.values[0], node.op, node.values[1])] if len(node.values) == 2 else []
    if isinstance(node, ast.Compare):
        return [(node.left, node.ops[0], node.comparators[0])]
    return []


def _tried(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those inside messages, checks of types and default values."""
    for child in ast.iter_child_nodes(tree):
        is_for_tools = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not isinstance(child, UNTRIED) and not is_for_tools:
            yield child
            yield from _tried(child)


def draw(root: Path, seed: int, count: int) -> list[Fault]:
    """So many faults, each in a module of its own."""
    chance = random.Random(seed)
    files = sorted(file.relative_to(root).as_posix() for room in ROOMS for file in (root / room).rglob("*.py"))
    chance.shuffle(files)
    possible = (faults_of(file, (root / file).read_bytes()) for file in files)
    return [chance.choice(faults) for faults, _ in zip((found for found in possible if found), range(count), strict=False)]


def nearest(clone: Path, fault: Fault) -> list[str]:
    """Test files that name the module, in their order."""
    module = Path(fault.file)
    name = re.compile(rf"\b{module.parent.name}(\.| import .*\b){module.stem}\b")
    tests = sorted((clone / "tests").rglob("test_*.py"))
    named = [file for file in tests if name.search(file.read_text(encoding="utf-8")) or file.stem == f"test_{module.stem}"]
    return [file.relative_to(clone).as_posix() for file in named]


def noticed_by(clone: Path, fault: Fault) -> str:
    """The first test that fails with a fault, or nothing."""
    near = nearest(clone, fault)
    return (near and first_failure(clone, near)) or first_failure(clone, TOGETHER)


def first_failure(clone: Path, arguments: Sequence[str]) -> str:
    """The first test that fails, "nothing ended" where a loop goes on for ever, or nothing.

    Raises:
        RuntimeError: pytest itself went wrong.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "encoding": "utf-8", "errors": "replace"}
    with started(command, cwd=clone, env=os.environ | share_of_cores(), **pipes) as running:
        try:
            said, _ = running.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return f"nothing ended within {PATIENCE} s"
    failed = re.search(r"^(?:FAILED|ERROR) (tests/\S+)", said, re.MULTILINE)
    if failed:
        return failed.group(1)
    if running.returncode not in (0, 5):  # 5: nothing of those files is in the tier
        raise RuntimeError(f"pytest ended with {running.returncode}, and named no test:\n{said[-2000:]}")
    return ""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py faults", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=None, help="of the draw (default: a new one, printed)")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--least", type=int, default=None, help="faults that must be noticed (default: all but one)")
    parser.add_argument("--list", action="store_true", help="only say which are drawn")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse(sys.argv[1:])
    leave_on_signals()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    found, drawn = 0, []
    with tempfile.TemporaryDirectory(prefix="multitalk-faults-") as folder:
        clone = Path(folder) / "pack"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        if not options.list and (red := first_failure(clone, TOGETHER)):
            print(f"The quick tier is not green without a fault ({red}); mend that first.")
            return 2
        drawn = draw(clone, seed, options.count)
        for number, fault in enumerate(drawn, start=1):
            print(f"{number:2} {fault.apply(clone)}", flush=True)
            if not options.list:
                began = time.monotonic()
                by = noticed_by(clone, fault)
                found += bool(by)
                print(f"    {'noticed by ' + by if by else 'NOT NOTICED'}; {time.monotonic() - began:.0f} s", flush=True)
            subprocess.run(["git", "checkout", "--quiet", "."], cwd=clone, check=True)
    if options.list:
        return 0
    print(f"{found} of {len(drawn)} faults noticed")
    return 0 if found >= (len(drawn) - 1 if options.least is None else options.least) else 1
