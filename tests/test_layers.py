"""The layout shows the architecture: imports go downward, all public names are told.

Of the library first, then of the rooms of `experiments`.
"""

import ast
import inspect
import sys
from pathlib import Path

import pytest

import sup_tickets as st

ROOT = Path(st.__file__).parent

# A module may import the modules of lower layers only.
LAYERS = [
    {"types", "checks", "files", "rules", "zeros", "unfit"},
    {"panels"},
    {"trees", "counting", "ramps", "running_averages", "schedule_counts", "inside"},
    {"tree_checks", "schedules", "softening", "rotations", "sort_keys", "thresholds"},
    {"groups"},
    {"structures", "place_counts", "learning_rates", "tickets", "densities"},
    {"selection_cpu", "selection_groups", "selection_mesh"},
    {"selection", "distributions", "coverage", "channels"},
    {"masks", "wiring"},
    {"block_selection", "saliency", "slots", "iterate_averaging", "condensed"},
    {"topology", "pruning", "foresight", "pictures"},
    {"superposition", "orthogonal", "gradinit", "norm_statistics", "rounds", "views"},
    {"dynamic", "ablation"},
    {"methods", "redistribution", "update_times", "method_state"},
    {"updates"},
    {"sparse_state"},
    {"transforms"},
    {"training"},
    {"stamp"},
    {"__main__"},
]
# These know nothing of masks, and nothing below them knows of them.
ASIDE = {"models", "data"}
CORE_MAY_IMPORT = {"chex", "jax", "numpy", "optax"}
# Once something is drawn, and not before.
PICTURES, DRAW_WITH = {"panels", "pictures"}, {"matplotlib"}


def level_of(part: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if part in layer)


def modules() -> list[Path]:
    return sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path):
    part = part_of(path)
    for module in imports(path):
        names = module.split(".")
        assert names[0] not in ("experiments", "configs", "tests"), module
        if names[0] != "sup_tickets":
            continue
        assert len(names) > 1, f"{path.name} imports the package root"
        other = names[1]
        if other == part:
            continue  # within one sub-package
        if part in ASIDE:
            known = {"types", "checks", "files"}
            assert other in known, f"{path.name} imports {module}"
        elif other in ASIDE:
            assert part == "training", f"{path.name} imports {module}"
        else:
            assert level_of(other) < level_of(part), f"{path.name} imports {module}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_core_needs_only_chex_jax_numpy_optax(path):
    if part_of(path) in ASIDE | {"training", "stamp"}:
        return
    outside = {m.split(".")[0] for m in imports(path)} - {"sup_tickets"}
    may = CORE_MAY_IMPORT | DRAW_WITH if part_of(path) in PICTURES else CORE_MAY_IMPORT
    assert outside - set(sys.stdlib_module_names) <= may


def test_every_module_has_a_layer():
    assert {part_of(p) for p in modules()} == set.union(*LAYERS) | ASIDE


def test_public_names_are_present_and_documented():
    tree = ast.parse((ROOT / "__init__.py").read_text("utf-8"))
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(st.__all__) == sorted(names)
    for name in st.__all__:
        value = getattr(st, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert inspect.getdoc(value), f"{name} has no docstring"


def test_public_functions_have_keyword_only_hyper_parameters():
    for name in ("erk", "uniform", "rewire", "prune_to", "Method", "superposition"):
        parameters = inspect.signature(getattr(st, name)).parameters
        assert any(p.kind is p.KEYWORD_ONLY for p in parameters.values()), name


# Text files are UTF-8 wherever they are read: the locale of a machine says nothing.
TREES = [ROOT, ROOT.parent / "experiments", ROOT.parent / "configs"]
SOURCES = [ROOT.parent / "setup.py", *(p for t in TREES for p in t.rglob("*.py"))]


def without_encoding(call: ast.Call) -> bool:
    """Whether a call opens a text file in whatever encoding the locale has."""
    name = getattr(call.func, "attr", getattr(call.func, "id", None))
    given = {word.arg: word.value for word in call.keywords}
    if "encoding" in given:
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) < (1 if name == "read_text" else 2)
    mode = given.get("mode")
    if name == "open" and isinstance(call.func, ast.Name):
        mode = call.args[1] if len(call.args) > 1 else mode
        return not (isinstance(mode, ast.Constant) and "b" in mode.value)
    return False


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT.parent)))
def test_text_files_are_read_and_written_as_utf_8(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if is_call(n)]
    assert not [call.lineno for call in calls if without_encoding(call)]


def is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call)


def test_calls_without_an_encoding_are_found():
    for text, wanted in {
        "open(x)": True,
        "open(x, 'w')": True,
        "open(x, mode='a')": True,
        "open(x, 'rb')": False,
        "open(x, 'w', encoding='utf-8')": False,
        "Image.open(x)": False,
        "p.read_text()": True,
        "p.read_text('utf-8')": False,
        "p.write_text(x)": True,
        "p.write_text(x, encoding='utf-8')": False,
    }.items():
        (call,) = (n for n in ast.walk(ast.parse(text)) if is_call(n))
        assert without_encoding(call) == wanted, text


# --- Experiments ----------------------------------------------------------------------

EXPERIMENTS = ROOT.parent / "experiments"
# A module may import its own room and those before it; commands import all.
ROOMS = ["config", "build", "runs", "studies", "reports", "systems", "commands"]
# After the build nothing needs ml_collections: what is left of a configuration is a
# value that `experiments.config` made.
READ_CONFIGURATIONS = {"config", "build"}


def room_of(names: list[str]) -> str:
    """Of a module below `experiments`, by its path; benchmarks are commands too."""
    return names[0] if names[0] in ROOMS[:-1] else "commands"


def experiments_imports(path: Path) -> set[str]:
    """Modules of `experiments` that a file imports, also by name from a package."""
    found = imports(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if is_module(name)}
    return {module for module in found if module.startswith("experiments.")}


def is_module(name: str) -> bool:
    place = ROOT.parent.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").exists()


@pytest.mark.parametrize(
    "path",
    sorted(EXPERIMENTS.rglob("*.py")),
    ids=lambda p: str(p.relative_to(EXPERIMENTS)),
)
def test_rooms_import_those_before_them(path):
    room = room_of(list(path.relative_to(EXPERIMENTS).with_suffix("").parts))
    for module in experiments_imports(path):
        other = room_of(module.split(".")[1:])
        assert ROOMS.index(other) <= ROOMS.index(room), f"{path.name} imports {module}"
    outside = {module.split(".")[0] for module in imports(path)}
    assert "tests" not in outside
    if room not in READ_CONFIGURATIONS:
        assert "ml_collections" not in outside, f"{path.name} imports ml_collections"


def test_every_room_is_there():
    there = {path.parent.name for path in EXPERIMENTS.glob("*/__init__.py")}
    assert there == {*ROOMS[:-1], "benchmarks"}
