"""Flags: overrides as in ml_collections, paths, letters of the locale."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from experiments import main as main_module
from experiments.config.flags import Parser, file_path, folder_path
from experiments.config.reading import Source
from tests.test_commands import COMMANDS, ROOT, main_of


def parsed(*words):
    parser = Parser("x", None)
    parser.add_config()
    parser.add_switch("--fast", "a switch")
    parser.add_argument("--number", type=int)
    parser.add_argument("rest", nargs="*")
    return parser.read([f"--config={ROOT / 'configs/digits.py'}", *words])


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        ([], []),
        (["--config.seed=3"], [("seed", "3")]),
        (["--config.seed", "3"], [("seed", "3")]),
        (["-config.seed=3"], [("seed", "3")]),
        (["-config.seed", "-3"], [("seed", "-3")]),
        (["--config.compare"], [("compare", "true")]),
        (["--noconfig.compare"], [("compare", "false")]),
        (["-noconfig.compare"], [("compare", "false")]),
        (["--config.compare=false"], [("compare", "false")]),
        (["--config.seed=1", "--config.seed=2"], [("seed", "2")]),
        (["--config.masks=a=b,c=d"], [("masks", "a=b,c=d")]),
        (["--config.masks="], [("masks", "")]),
        (
            ["--config.method.keep_dense=a", "--config.method.keep_dense=b"],
            [("method.keep_dense", "a,b")],
        ),
        (["--config.model.options.x"], [("model.options.x", "true")]),
    ],
)
def test_overrides_are_written_as_in_ml_collections(words, overrides):
    source = parsed(*words).config
    assert isinstance(source, Source)
    assert list(source.overrides) == overrides
    # The same words for ml_collections itself.
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    plain = source._replace(overrides=()).make()
    flags_words = ["x", *words]
    if "options" in "".join(words) or "--config.masks=" in words:
        return  # it refuses new fields, and has no way to unset one
    config_flags.DEFINE_config_dict(
        "config", plain, flag_values=values, sys_argv=flags_words
    )
    values(flags_words)
    found: Any = values["config"].value
    theirs = found.to_dict()
    ours = source.make().to_dict()
    ours["method"]["name"] = theirs["method"]["name"]  # what follows from masks
    ours["sup"]["enabled"] = theirs["sup"]["enabled"]
    assert ours == theirs


def test_a_commands_own_flags():
    assert parsed().fast is False
    for words in (["--fast"], ["-fast"], ["--fast=true"], ["--fast=1"], ["--fast=T"]):
        assert parsed(*words).fast is True
    for words in (["--nofast"], ["--fast=false"], ["--fast", "--nofast"]):
        assert parsed(*words).fast is False
    assert parsed("--fast", "a", "b").rest == ["a", "b"]
    assert parsed("--number", "3").number == parsed("-number=3").number == 3
    assert parsed("--", "--fast", "--config.x=1").rest == ["--fast", "--config.x=1"]


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder_path("~/runs/x") == tmp_path / "runs/x"
    assert folder_path("./~/x") == Path("~/x")
    assert file_path("runs/x") == Path("runs/x")
    seen = []
    monkeypatch.setattr(
        main_module, "run", lambda config, workdir: seen.append(workdir)
    )
    main_of("main")([f"--config={ROOT / 'configs/digits.py'}", "--workdir=~/runs/x"])
    assert seen == [tmp_path / "runs/x"]


@pytest.mark.parametrize("name", COMMANDS)
def test_letters_that_the_locale_lacks_are_told_at_once(name, capsys):
    """As ``LC_ALL=POSIX`` has them: libraries below cannot open such paths."""
    with pytest.raises(SystemExit) as caught:
        main_of(name)(["--out=/tmp/l\udcc3\udca4uf"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: '--out=/tmp/läuf' has letters that are not of the")
    assert "LC_ALL=C.UTF-8" in line


def test_a_home_that_the_locale_lacks(monkeypatch):
    monkeypatch.setenv("HOME", "/home/j\udcfcrg")
    with pytest.raises(argparse.ArgumentTypeError, match="letters that are not of"):
        folder_path("~/x")
