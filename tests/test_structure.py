"""The rules of the house, read from the source: which way imports point, and what product code never does."""

import ast
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# a room and the rooms it may import from; "" is the root __init__.py
ALLOWED = {
    "": {"nodes", "comfy_bridge"},
    "nodes": {"nodes", "comfy_bridge", "multitalk_core"},
    "comfy_bridge": {"comfy_bridge", "multitalk_core"},
    "multitalk_core": {"multitalk_core"},
    "multitalk_client": {"multitalk_client"},
    "serverless": {"serverless"},  # and by their own names multitalk_client, a program beside it, and the core's decoding
}
HOST = "comfy comfy_api comfy_execution comfy_extras execution folder_paths comfyui_version latent_preview node_helpers nodes server"
# needed for one feature each, or only faster: a pack that imports them at start breaks where they are missing
OPTIONAL = {"boto3", "flash_attn", "kornia", "librosa", "pysubs2", "sageattention", "silero_vad", "triton", "xformers"}
DISTRIBUTIONS = {"PIL": "pillow"}  # an imported module's package, where it has another name
BROUGHT_ALONG = {"packaging"}  # by transformers
DROPPED = {"torchaudio"}  # in the requirements of older ComfyUIs only
SLOW = {"av", "scipy", "transformers"}  # to import: so the pack does it where they are used. ComfyUI has them


def product_files() -> list[Path]:
    rooms = [file for room in ALLOWED if room for file in sorted((ROOT / room).rglob("*.py"))]
    return [ROOT / "__init__.py", *rooms]


def imported_rooms(tree: ast.AST, place: tuple[str, ...]) -> set[str]:
    """The pack's rooms that a module imports relatively; place is its package, () for the root. A path out of the pack is '..'."""
    rooms = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level > len(place) + 1:
                rooms.add("..")
                continue
            base = place[: len(place) + 1 - node.level] + tuple((node.module or "").split(".") if node.module else ())
            rooms |= {base[0]} if base else {alias.name for alias in node.names}
    return rooms


def imported_modules(nodes) -> set[str]:
    """Top-level names of the absolute imports among nodes."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def run_at_import(tree: ast.Module):
    """The statements that importing the module runs: all but function bodies and what only type checkers read."""
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        pending += ast.iter_child_nodes(node)


def prints(tree: ast.AST) -> list[int]:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def broad_handlers(tree: ast.AST) -> list[int]:
    def is_broad(kind: ast.expr | None) -> bool:
        kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
        return any(k is None or (isinstance(k, ast.Name) and k.id in ("Exception", "BaseException")) for k in kinds)

    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and is_broad(node.type)]


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Every product file, by its path in the repository."""
    return {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in product_files()}


def place_of(file: str) -> tuple[str, ...]:
    return tuple(file.split("/")[:-1])


def room_of(file: str) -> str:
    return "/".join(place_of(file)[:1])


def offending(trees, found) -> dict[str, set]:
    """Files with what `found(file, tree)` says is wrong in them."""
    problems = {file: set(found(file, tree)) for file, tree in trees.items()}
    return {file: problem for file, problem in problems.items() if problem}


def test_every_room_has_files(trees):
    assert len(trees) > 90 and {room_of(file) for file in trees} == set(ALLOWED)


def test_imports_point_from_nodes_to_bridge_to_core(trees):
    assert offending(trees, lambda file, tree: imported_rooms(tree, place_of(file)) - ALLOWED[room_of(file)]) == {}


def test_the_pack_imports_itself_relatively(trees):
    """ComfyUI gives the pack a name of its own choosing, and has top-level modules named like ours."""
    ours = {"multitalk_nodes", "multitalk_core", "comfy_bridge", "tools"}
    worker = {file: {"multitalk_core"} for file in trees if room_of(file) == "serverless"}  # a program, not a part of the pack
    assert offending(trees, lambda file, tree: imported_modules(ast.walk(tree)) & ours - worker.get(file, set())) == {}


def test_the_core_does_not_know_comfy(trees):
    core = {file: tree for file, tree in trees.items() if room_of(file) == "multitalk_core"}
    assert offending(core, lambda _, tree: imported_modules(ast.walk(tree)) & set(HOST.split())) == {}


def test_optional_and_slow_packages_are_not_imported_at_start(trees):
    def imported(file, tree):
        return imported_modules(run_at_import(tree)) & (OPTIONAL if room_of(file) == "serverless" else OPTIONAL | SLOW)

    assert offending(trees, imported) == {}


def test_product_code_does_not_print(trees):
    assert offending(trees, lambda file, tree: () if file.endswith("__main__.py") else prints(tree)) == {}  # a command's own words


def test_product_code_names_the_errors_it_catches(trees):
    """But for one last resort: behind it somebody would send the stack trace to strangers."""
    broad = offending(trees, lambda _, tree: broad_handlers(tree))
    assert list(broad) == ["serverless/handler.py"] and len(broad["serverless/handler.py"]) == 1


def test_client_and_worker_need_neither_torch_nor_comfyui(trees):
    def imported(file, tree):
        numbers = {"numpy"} if room_of(file) == "multitalk_client" else set()
        return imported_modules(ast.walk(tree)) & {"torch", *numbers, *HOST.split()}

    assert offending({file: tree for file, tree in trees.items() if room_of(file) in ("multitalk_client", "serverless")}, imported) == {}


def test_what_the_worker_takes_of_the_core_needs_no_torch_either(trees):
    worker = [file for file in trees if room_of(file) == "serverless"]
    taken = {node.module for file in worker for node in ast.walk(trees[file]) if isinstance(node, ast.ImportFrom) and not node.level}
    pending = [module.replace(".", "/") + ".py" for module in taken if module.startswith("multitalk_core")]
    assert sorted(pending) == ["multitalk_core/audio/decoding.py", "multitalk_core/audio/runs.py"]
    seen = set()
    while pending:
        seen.add(file := pending.pop())
        assert not imported_modules(ast.walk(trees[file])) & {"torch", *HOST.split()}, file
        near = [node for node in ast.walk(trees[file]) if isinstance(node, ast.ImportFrom) and node.level]
        files = ["/".join((*place_of(file)[: len(place_of(file)) + 1 - node.level], *node.module.split("."))) + ".py" for node in near]
        pending += [file for file in files if file not in seen]
    assert len(seen) > 3


def test_what_the_nodes_import_comes_with_comfyui_or_is_required(trees):
    """ComfyUI drops requirements: torchaudio, between 0.36 and 0.38. An import of what it no longer brings breaks users' packs."""
    brought = required_names(Path(os.environ["COMFYUI_PATH"]) / "requirements.txt") - DROPPED
    ours = required_names(ROOT / "requirements.txt")
    assert ours - brought == {"soundfile", "soxr"}, "README says which two packages ComfyUI does not bring"
    nodes = {file: tree for file, tree in trees.items() if room_of(file) in ("", "nodes", "comfy_bridge", "multitalk_core")}

    def unknown(_, tree):
        modules = imported_modules(ast.walk(tree)) - sys.stdlib_module_names - set(HOST.split()) - OPTIONAL - ours
        return {module for module in modules if DISTRIBUTIONS.get(module, module) not in brought | BROUGHT_ALONG}

    assert offending(nodes, unknown) == {}
    assert unknown("", ast.parse("def f():\n    import torch, torchaudio.functional, os, scipy.signal")) == {"torchaudio"}


def required_names(file: Path) -> set[str]:
    """Names of the packages in a requirements file, in lower case."""
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return {re.match(r"[\w.-]+", line).group().lower() for line in lines if line}


def test_these_checks_see_what_they_look_for():
    def rooms(source: str, *place: str) -> set[str]:
        return imported_rooms(ast.parse(source), place)

    assert rooms("from ..nodes import x", "multitalk_core") == {"nodes"}
    assert rooms("from .. import comfy_bridge", "multitalk_core") == {"comfy_bridge"}
    assert rooms("from . import audio\nfrom .audio import x", "multitalk_core") == {"multitalk_core"}
    assert rooms("from ...comfy_bridge.x import y", "nodes", "themed") == {"comfy_bridge"}
    assert rooms("from .nodes import NODES") == {"nodes"}
    assert rooms("from ... import x", "nodes") == {".."}
    at_start = run_at_import(ast.parse("try:\n    import triton\nexcept ImportError:\n    pass\ndef f():\n    import boto3"))
    assert imported_modules(at_start) == {"triton"}
    assert prints(ast.parse("x = 1\nprint(x)")) == [2]
    for kind in ("", " Exception", " (ValueError, BaseException) as error"):
        assert broad_handlers(ast.parse(f"try:\n    pass\nexcept{kind}:\n    pass")) == [3]


def test_pyproject_and_requirements_name_the_same_packages():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.findall(r'"([^"]+)"', re.search(r"^dependencies = \[(.*?)\]", pyproject, re.MULTILINE | re.DOTALL).group(1))
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert listed == [line for line in lines if line and not line.startswith("#")]
    assert not any(name.startswith("torch") for name in listed)


def test_the_core_is_the_paper_with_its_wings_apart(trees):
    flat = [file for file in trees if place_of(file) == ("multitalk_core",) and not file.endswith("__init__.py")]
    assert len(flat) <= 16, "the ground floor is the paper: what is new belongs in a wing"
    wings = {file.split("/")[1] for file in trees if room_of(file) == "multitalk_core" and len(place_of(file)) > 1}
    assert all(wing in trees["multitalk_core/__init__.py"].body[0].value.value for wing in wings), "the core's docstring names every wing"


def test_no_imports_go_in_circles(trees):
    """Within functions, too: a circle that only shows when something runs is one."""
    paths = {tuple(file.removesuffix(".py").removesuffix("/__init__").split("/")): file for file in trees if file != "__init__.py"}

    def imported(file):
        place = place_of(file)
        for node in ast.walk(trees[file]):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = place[: len(place) + 1 - node.level] + tuple((node.module or "").split(".") if node.module else ())
                modules = [(*base, alias.name) if (*base, alias.name) in paths else base for alias in node.names]
                yield from (paths[module] for module in modules if module in paths)

    waiting = {file: set(imported(file)) - {file} for file in paths.values()}
    while free := [file for file, needed in waiting.items() if not needed & waiting.keys()]:
        for file in free:
            del waiting[file]
    assert list(waiting) == [], "these import each other, or import what does"


def test_functions_take_at_most_seven_parameters(trees):
    """What travels together is a record with a name. `execute` has a parameter for every input of its node."""
    rooms = {"nodes", "comfy_bridge", "multitalk_core"}
    functions = {
        f"{file}:{node.name}": [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        for file, tree in trees.items()
        if room_of(file) in rooms
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name != "execute"
    }
    too_long = {name: taken for name, taken in functions.items() if len([one for one in taken if one not in ("self", "cls")]) > 7}
    assert not too_long and len(functions) > 400
