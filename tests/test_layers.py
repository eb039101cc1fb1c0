"""The layout shows the architecture: imports go downward, all public names are told."""

import ast
import inspect
import sys
from pathlib import Path

import pytest

import sup_tickets as st

ROOT = Path(st.__file__).parent

# A module may import the modules of lower layers only.
LAYERS = [
    {"types", "checks", "files", "rules", "zeros"},
    {"trees", "counting", "ramps", "averages", "clocks"},
    {"tree_checks", "schedules", "softening", "rotations"},
    {"learning_rates", "tickets", "selection", "densities", "coverage"},
    {"masks", "distributions"},
    {"structured", "saliency", "slots"},
    {"topology", "superposition", "foresight"},
    {"orthogonal", "gradinit", "statistics", "rounds"},
    {"dynamic"},
    {"methods", "redistribution", "timing"},
    {"updates"},
    {"transforms"},
    {"training"},
]
# These know nothing of masks, and nothing below them knows of them.
ASIDE = {"models", "data"}
CORE_MAY_IMPORT = {"chex", "jax", "numpy", "optax"}


def level_of(part: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if part in layer)


def modules() -> list[Path]:
    return sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
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
    if part_of(path) in ASIDE | {"training"}:
        return
    outside = {m.split(".")[0] for m in imports(path)} - {"sup_tickets"}
    assert outside - set(sys.stdlib_module_names) <= CORE_MAY_IMPORT


def test_every_module_has_a_layer():
    assert {part_of(p) for p in modules()} == set.union(*LAYERS) | ASIDE


def test_public_names_are_present_and_documented():
    tree = ast.parse((ROOT / "__init__.py").read_text())
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
