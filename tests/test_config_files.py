"""Files of configurations: executed once, checked, and blamed for their own errors."""

import re

import pytest

from experiments.config.fields import check_config
from experiments.config.reading import BrokenFile, Source, read_source
from experiments.config.values import expanded


def source_of(tmp_path, text, name="own.py", argument=""):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_source(f"{path}{argument}")


def test_a_file_is_executed_once(tmp_path):
    text = (
        "from pathlib import Path\nfrom configs import common\n"
        "with open(Path(__file__).with_name('count'), 'a') as f: f.write('x')\n"
        "def get_config(): return common.default()\n"
    )
    source = source_of(tmp_path, text)
    for seed in "012":
        assert source.make([("seed", seed)]).seed == int(seed)
    assert (tmp_path / "count").read_text() == "x"


def test_a_path_may_have_colons_and_a_home(tmp_path, monkeypatch):
    text = "from configs import common\nget_config = common.default\n"
    assert source_of(tmp_path, text, name="a:b.py").make().seed == 0
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_source("~/a:b.py").make().seed == 0
    assert expanded("~/a") == f"{tmp_path}/a"


HEAD = (
    "from ml_collections import ConfigDict, FrozenConfigDict\n"
    "from configs import common\n"
)


@pytest.mark.parametrize(
    ("text", "argument", "message"),
    [
        ("x = 1", "", "has no function get_config"),
        ("get_config = 3", "", "has no function get_config"),
        ("", "", "has no function get_config"),
        ("def get_config(): return None", "", "returned nothing"),
        ("def get_config(): pass", "", "returned nothing"),
        ("def get_config(): return {}", "", "ConfigDict, and returned a dict"),
        ("def get_config(): return [1]", "", "ConfigDict, and returned a list"),
        ("def get_config(): return 'x'", "", "ConfigDict, and returned a str"),
        ("def get_config(): yield 1", "", "ConfigDict, and returned a generator"),
        (
            "def get_config(): return common.default()",
            ":seed=1",
            "takes no argument, got",
        ),
        ("def get_config(a): return common.default()", "", "needs an argument, "),
        (
            "def get_config(a, b): return 1",
            ":x",
            "must take one argument, it takes a, b",
        ),
        ("def get_config(a, b): return 1", "", "must take one argument, it takes a, b"),
        ("def get_config(*, a): return 1", ":x", "must take one argument, it takes a"),
    ],
)
def test_a_get_config_of_another_kind(text, argument, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        source_of(tmp_path, HEAD + text, argument=argument).make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(): return ConfigDict()", "has no field config.seed"),
        ("def get_config(): return ConfigDict({'sed': 1})", "unknown field config.sed"),
        (
            "def get_config():\n c = common.default(); del c.model\n"
            " c.model = 'mlp'; return c",
            "config.model",
        ),
    ],
)
def test_a_configuration_that_lacks_fields(text, message, tmp_path):
    with pytest.raises((ValueError, BrokenFile), match=re.escape(message)):
        check_config(source_of(tmp_path, HEAD + text).make(implied=["mask.name"]))


def test_a_frozen_configuration_may_be_overridden(tmp_path):
    text = "def get_config(): return FrozenConfigDict(common.default())"
    source = source_of(tmp_path, HEAD + text)._replace(overrides=[("seed", "3")])
    assert source.make().seed == 3


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("def get_config(:", ["def get_config(:", "SyntaxError: "]),
        ("def get_config(): return nothing", ["return nothing", "NameError: name"]),
        ("import no_such_package", ["import no_such_package", "ModuleNotFoundError: "]),
        (
            "def get_config(): return ConfigDict().seed",
            ["ConfigDict().seed", "AttributeE"],
        ),
        (
            "def get_config(): raise ValueError('mine')",
            ["raise Val", "ValueError: mine"],
        ),
        (
            "def get_config():\n c = common.default(); c.seed = 'x'; return c",
            ["c.seed = 'x'", "TypeError: "],
        ),
        ("raise SystemError", ["raise SystemError", "SystemError"]),
        ("\tx = 1", ["IndentationError: "]),
    ],
)
def test_an_error_within_a_file_keeps_its_own_lines(text, lines, tmp_path):
    with pytest.raises(BrokenFile) as caught:
        source_of(tmp_path, HEAD + text).make()
    message = str(caught.value)
    assert message.startswith(f"error: --config: '{tmp_path}/own.py' failed\n")
    for line in lines:
        assert line in message
    assert "importlib" not in message and "reading.py" not in message
    assert "site-packages" not in message
    assert len(message.splitlines()) <= 8


def test_what_the_argument_has_wrong_is_one_line(tmp_path):
    text = (
        HEAD + "def get_config(a=''): return common.with_argument(common.default(), a)"
    )
    for argument, message in [
        (":sed=1", "unknown name 'sed'"),
        (":seed=x", "seed must be of type int, got 'x'"),
        (":tost=hard", "tost must be true, false, released or some of"),
        (":seed", "it must look like"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            source_of(tmp_path, text, argument=argument).make()
        assert "\n" not in str(caught.value)


def test_an_argument_of_another_syntax_is_handed_over(tmp_path):
    text = HEAD + "def get_config(a):\n c = common.default(); c.evaluate = a; return c"
    source: Source = source_of(tmp_path, text, argument=":any thing, at=all:")
    assert source._replace(overrides=[("seed", "2")]).make().evaluate == (
        "any thing, at=all:"
    )
