"""What README and docs show is true: code runs and prints what it says, links lead.

Every Python block of a page runs, one after the other in one namespace; where a print
has a comment, that is what it prints. So do the cells of the notebook, whose outputs
`make docs` shows. Every command of ours is read by its own parser, and its
configuration is made. Every link to a file or a heading of ours finds it.
"""

import argparse
import ast
import contextlib
import fnmatch
import importlib
import inspect
import io
import json
import re
import shlex
import sys
import typing
from pathlib import Path

import jax
import numpy as np
import pytest

import sup_tickets as st
from experiments.benchmarks import table
from sup_tickets import training
from tests.test_commands import COMMANDS

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs/tutorial.ipynb"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), NOTEBOOK]
PAGES.append(ROOT / "CONTRIBUTING.md")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def text_of(page):
    """Of a page, or of a notebook as if it were one."""
    text = page.read_text("utf-8")
    if page.suffix != ".ipynb":
        return text
    fence = {"code": "```python\n{}\n```", "markdown": "{}"}
    cells = json.loads(text)["cells"]
    return "\n\n".join(
        fence[c["cell_type"]].format("".join(c["source"])) for c in cells
    )


# --- Python ---------------------------------------------------------------------------


def blocks_of(page, language, package=None):
    """The fenced blocks of a language, each with the line before its first.

    A block may name a package that it needs beside ours, and is left out without that.
    """
    text = text_of(page)
    for found in re.finditer(rf"^```{language}( \w+)?\n(.*?)^```", text, re.S | re.M):
        if found[1] is None or found[1].strip() == package:
            yield text[: found.start(2)].count("\n"), found[2]


def expected_after(lines, last):
    """The comment behind the last line of a statement, or the lines of it below."""
    _, hash_, text = lines[last].partition("  # ")
    if hash_:
        return text
    below = []
    for line in lines[last + 1 :]:
        if not line.startswith("#"):
            break
        below.append(line.removeprefix("#"))
    return "\n".join(below)


def run_page(page, package=None):
    """Runs the blocks of a page; its namespace."""
    space = {"__name__": page.stem}
    for before, source in blocks_of(page, "python", package):
        source = re.sub(r"^%", "# %", source, flags=re.M)  # magic of notebooks
        lines = source.splitlines()
        tree = ast.parse("\n" * before + source, page.name)
        for statement in tree.body:
            heard = io.StringIO()
            code = compile(ast.Module([statement], []), page.name, "exec")
            with contextlib.redirect_stdout(heard):
                exec(code, space)
            if heard.getvalue() and page != NOTEBOOK:
                last = statement.end_lineno - 1 - before
                expected = expected_after(lines, last).split()
                where = f"{page.name}, line {statement.end_lineno}"
                assert expected, f"{where} does not say what it prints"
                assert heard.getvalue().split() == expected, where
    return space


def check_tutorial(space):
    """What the notebook says of its numbers."""
    assert int(st.count(space["masks"])) == 5020
    assert len(space["tickets"]) == 3
    for network in (*space["tickets"].values(), space["superposed"]):
        assert space["accuracy"](network) > 0.93
    assert space["small"] < space["whole"] / 5
    same = np.testing.assert_array_equal
    jax.tree.map(same, space["loaded"].params, space["superposed"])


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(blocks_of(page, "python"))],
    ids=lambda page: page.stem,
)
def test_the_code_runs_and_prints_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        space = run_page(page)
        if page == NOTEBOOK:
            check_tutorial(space)
    if page.stem == "README":
        masks, params = space["masks"], space["params"]
        assert int(st.count(masks)) == 237
        pruned = st.apply_masks(masks, params)
        jax.tree.map(np.testing.assert_array_equal, pruned, params)


def test_an_exported_network_says_the_same_in_pytorch(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not here; its block did not run")
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert "logits" in run_page(ROOT / "docs/files.md", "torch")


# --- Commands -------------------------------------------------------------------------

OURS = re.compile(r"\S*python3? -m (experiments\.[a-z_.]+)(.*)")


def commands_of(page):
    """The module and the words of each of our commands on a page."""
    lines = [
        line
        for _, block in blocks_of(page, "sh")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    lines += re.findall(r"`(python -m[^`]*)`", text_of(page))
    for line in lines:
        found = OURS.search(line.replace("\n", " "))
        if found:
            text = re.sub(r"\$\{?[A-Za-z_]\w*\}?", "1", found[2])
            if text.count('"') % 2:  # itself between quotes, of ssh for example
                text = text.rpartition('"')[0]
            words = shlex.split(text, comments=True)
            ends = (
                i for i, word in enumerate(words) if word in (";", "|", "&", "done")
            )
            yield found[1], words[: next(ends, None)]


def read_by(module, words, monkeypatch):
    """What a command makes of its words, without running it."""
    options = []
    program = importlib.import_module(module)
    # What benchmarks of one table share begins for them.
    begins = program if hasattr(program, "start") else table
    monkeypatch.setattr(
        begins,
        "start",
        lambda parser, body, argv=None: options.append(parser.read(argv)),
    )
    program.main(words)
    return options[0]


@every_page
def test_every_command_is_read(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for module, words in commands_of(page):
        options = read_by(module, words, monkeypatch)
        if getattr(options, "config", None) is None:
            continue
        if module != "experiments.sweep":
            options.config.make()
            continue
        grid = importlib.import_module(module).parse_grid(options.grid)
        options.config.make([(name, values[0]) for name, values in grid.items()])


def test_the_studies_that_are_named_are_there():
    named = {words[0] for page in PAGES for module, words in commands_of(page)
             if module == "experiments.study" and words[0].islower()}  # fmt: skip
    assert named <= set(importlib.import_module("experiments.study").study_names())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_well_and_shows_an_example(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "88")
    parsers = []
    taken = argparse.ArgumentParser.format_help
    monkeypatch.setattr(
        argparse.ArgumentParser,
        "format_help",
        lambda parser: [parsers.append(parser), taken(parser)][1],
    )
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(f"experiments.{name}").main(["--help"])
    assert not caught.value.code
    said = capsys.readouterr().out
    assert f"\n    python -m experiments.{name} " in said.partition("]")[2]
    assert max(map(len, said.splitlines())) <= 88  # continued lines are two lines
    for option in parsers[0]._actions:
        assert option.help, f"{option.dest} is not explained"


def test_the_commands_are_those_of_the_makefile():
    makefile, readme = ((ROOT / f).read_text() for f in ("Makefile", "README.md"))
    pytest_line = re.search(r'-m pytest (-m "not slow".*)', makefile)[1]
    assert pytest_line in readme
    assert "-m experiments.main --config=configs/digits.py --workdir=" in makefile
    for target in ("run", "test"):
        assert f"make {target}" in readme
    for page in PAGES:
        for target in re.findall(r"`?make ([a-z-]+)\b(?=`| +#|\n)", text_of(page)):
            assert re.search(rf"^{target}:", makefile, re.M), target


# --- Links ----------------------------------------------------------------------------


def anchors_of(page):
    """What GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.S | re.M)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@every_page
def test_every_link_leads_somewhere(page):
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        found = page if not path else (page.parent / path).resolve()
        assert found.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors_of(found), f"{page.name}: {target}"


def test_every_page_is_found_from_the_readme_and_in_the_index():
    """By its links, or those of a page that it links to."""
    readme = PAGES[0].read_text("utf-8")
    assert "(CONTRIBUTING.md)" in readme
    pages = {page.name: page for page in PAGES[1:-1] if page.name != "index.md"}
    first = {name for name in pages if f"docs/{name})" in readme}
    second = "".join(text_of(pages[name]) for name in first)
    assert [n for n in pages.keys() - first if f"({n})" not in second] == []
    index = (ROOT / "docs/index.md").read_text("utf-8").splitlines()
    for page in pages.values():
        assert any(fnmatch.fnmatch(page.stem, line) for line in index), page.name


def test_the_notebook_has_no_outputs():
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


# --- Tables ---------------------------------------------------------------------------


def options_of(preset):
    """The names of its arguments, those that presets share among them."""
    for name, parameter in inspect.signature(preset).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            (shared,) = typing.get_args(parameter.annotation)
            yield from typing.get_type_hints(shared)
        else:
            yield name


def test_every_method_and_each_of_its_options_is_on_the_page_of_methods():
    text = (ROOT / "docs/methods.md").read_text("utf-8")
    for name, preset in st.METHODS.items():
        row = re.search(rf"^\| `{name}` \| `st.{preset.__name__}` \|", text, re.M)
        assert row, name
        for option in options_of(preset):
            assert f"`{option}`" in text, f"{name}: {option}"


def test_the_reference_has_every_name_once():
    text = (ROOT / "docs/api.md").read_text("utf-8")
    assert sorted(re.findall(r"^\.\. \S+:: ([A-Za-z_]\w*)$", text, re.M)) == sorted(
        [*st.__all__, *["sup_tickets"] * text.count("currentmodule")]
    )


def test_the_table_of_the_reference_has_the_names_of_every_section():
    text = (ROOT / "docs/api.md").read_text("utf-8")
    table, *sections = re.split(r"^## ", text, flags=re.M)
    listed = re.findall(r"^\| \[(.*?)\]\(.*?\) \| (.*) \|$", table, re.M)
    assert [title for title, _ in listed] == [s.partition("\n")[0] for s in sections]
    for (_, names), section in zip(listed, sections, strict=True):
        found = re.findall(r"^\.\. (?:auto|py:)\S+:: ([\w.]+)$", section, re.M)
        assert names == ", ".join(f"`{n.rpartition('.')[2]}`" for n in found)


# --- Installation ---------------------------------------------------------------------


def test_what_needs_the_extra_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r"safetensors; .*\[train\]"):
        importlib.reload(training)
