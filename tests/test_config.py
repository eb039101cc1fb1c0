"""Configurations: texts to values, and what follows from them."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import common
from experiments.config.fields import FIELDS, flat
from experiments.config.reading import read_source
from experiments.config.values import (
    joined,
    read_value,
    split,
    split_argument,
)
from tests.helpers import quick

DIGITS = str(Path(__file__).parent.parent / "configs/digits.py")
HOME = os.path.expanduser("~")

# --- Values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "texts", "value"),
    [
        ("compare", ["true", "True", "TRUE", "t", "1"], True),
        ("compare", ["false", "False", "FALSE", "f", "0"], False),
        ("seed", ["90", "9_0", "+90", " 90"], 90),
        ("method.sparsity", ["0.9", ".9", "9e-1", "0.9_0"], 0.9),
        ("train.learning_rate", ["90", "90.", "9e1", "9E+1"], 90.0),
        ("train.learning_rate", ["1e-3", "0.001", ".001"], 0.001),
        ("train.clip_norm", ["none", "None", "NONE", "", " none "], None),
        ("train.clip_norm", ["1", "1.0", "1e0"], 1.0),
        ("masks", ["none", "None", ""], None),
        ("masks", ["runs/a=1,seed=0/x.st"], "runs/a=1,seed=0/x.st"),
        ("masks", ["~/x.st"], f"{HOME}/x.st"),
        ("masks", ["./~/x.st"], "./~/x.st"),
        ("data.dir", ["$HOME/x"], "$HOME/x"),  # the shell's, not ours
        ("data.dir", ["~"], HOME),
        ("data.name", ["none"], "none"),  # may not be unset
        ("data.name", [""], ""),
        ("train.drop_epochs", ["1,2", "(1,2)", "[1, 2]", "(1, 2,)", " 1, 2"], (1, 2)),
        ("train.drop_epochs", ["3", "(3,)", "[3]", "(3)"], (3,)),
        ("train.drop_epochs", ["", "()", "[]", " "], ()),
        (
            "method.keep_dense",
            ["a,b", "(a, b)", "[a,b]", "('a', 'b')", "'a','b'"],
            ("a", "b"),
        ),
        ("method.keep_dense", ["a", "'a'", "('a',)", "['a']", "[a,]"], ("a",)),
        ("method.keep_dense", ["(a|b)"], ("(a|b)",)),
        ("method.keep_dense", ["a{1,2}", "('a{1,2}',)"], ("a{1,2}",)),
        ("method.keep_dense", ["a{1,2},b"], ("a{1,2}", "b")),
        ("method.keep_dense", ["1"], ("1",)),
        ("method.keep_dense", ["", "()"], ()),
        ("model.options.features", ["(8,)", "( 8 , )"], (8,)),
        ("model.options.features", ["8,9"], (8, 9)),
        ("model.options.x", ["true", "True"], True),
        ("model.options.x", ["None"], None),
        ("model.options.x", ["1e-3"], 0.001),
        ("model.options.x", ["some text"], "some text"),
    ],
)
def test_every_way_of_writing_a_value(field, texts, value):
    for text in texts:
        found = read_value(field, field, text)
        assert (found, type(found)) == (value, type(value)), text


@pytest.mark.parametrize(
    ("field", "texts", "message"),
    [
        (
            "compare",
            ["yes", "on", "", "2", "none"],
            "compare must be true or false, got",
        ),
        ("seed", ["", "1e3", "1.0", "x", "0x", "none", "1 2"], "must be of type int"),
        (
            "method.sparsity",
            ["", "90%", "0,9", "none", "half"],
            "must be of type float",
        ),
        ("train.drop_epochs", ["1.5", "x", "1,x", "(1", "true", "none"], "type ints"),
        ("masks", ["~no-such-user/x"], "there is no user 'no-such-user'"),
    ],
)
def test_what_is_no_value_is_refused(field, texts, message):
    for text in texts:
        with pytest.raises(ValueError, match=re.escape(message)):
            read_value(field, field, text)


# --- Arguments ------------------------------------------------------------------------

TICKET = "runs/sweep/sparsity=0.95,seed=0/final/network.safetensors"


@pytest.mark.parametrize(
    ("argument", "pairs"),
    [
        ("", []),
        ("seed=1,,sup=true,", [("seed", "1"), ("sup", "true")]),
        (f"masks={TICKET}", [("masks", TICKET)]),
        (f"masks={TICKET},seed=3", [("masks", TICKET), ("seed", "3")]),
        (f"seed=3,masks={TICKET}", [("seed", "3"), ("masks", TICKET)]),
        (
            f"masks={TICKET},data.dir=/a,b/c",
            [("masks", TICKET), ("data.dir", "/a,b/c")],
        ),
        ("masks='a,b.st',seed=1", [("masks", "a,b.st"), ("seed", "1")]),
        ('masks="a/b, c.st",seed=1', [("masks", "a/b, c.st"), ("seed", "1")]),
        (
            "masks=a.st,method.keep_dense=(x/y,z)",
            [("masks", "a.st"), ("method.keep_dense", "(x/y,z)")],
        ),
        (
            "masks=a.st,model=mlp,seed=0",
            [("masks", "a.st"), ("model", "mlp"), ("seed", "0")],
        ),
        ("train.drop_epochs=1,2,seed=0", [("train.drop_epochs", "1,2"), ("seed", "0")]),
        ("masks=it's.st,seed=0", [("masks", "it's.st"), ("seed", "0")]),
        ("masks=(a/b.st,seed=0", [("masks", "(a/b.st"), ("seed", "0")]),
        (
            "method.keep_dense=[a,'b,c'],seed=0",
            [("method.keep_dense", "[a,'b,c']"), ("seed", "0")],
        ),
    ],
)
def test_arguments_are_split_where_a_value_ends(argument, pairs):
    assert split_argument(argument, common.ALIASES) == pairs


@quick
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["seed", "masks", "method.keep_dense"]),
            st.text('ab,=/ ()[]"').map(str.strip),
        )
    )
)
def test_what_is_joined_is_split_again(pairs):
    assert split_argument(joined(pairs), common.ALIASES) == pairs


def test_splitting_loses_nothing():
    for text in ["", ",", "a,b", "a=(1,2),b", "a='x,y", "a=((1,2),b"]:
        assert ",".join(split(text)) == text


# --- Both ways of setting a field -----------------------------------------------------

BOTH = [
    ("masks", "masks", TICKET),
    ("mask", "mask.name", "snip"),
    ("mask", "mask.name", "random"),
    ("tost", "tost.parts", "true"),
    ("tost", "tost.parts", "released"),
    ("tost", "tost.parts", "soft+labels"),
    ("tost", "tost.parts", "false"),
    ("sup", "sup.enabled", "false"),
    ("method", "method.name", "set"),
    ("masks", "masks", "none"),
    ("masks", "masks", "~/x.st"),
    ("method.keep_dense", "method.keep_dense", "(a,b)"),
    ("train.clip_norm", "train.clip_norm", "1"),
    ("tost.released", "tost.released", "false"),
    ("seed", "seed", "7"),
    ("epochs", "train.epochs", "3"),
]


@pytest.fixture(scope="module")
def digits():
    return read_source(DIGITS)


@pytest.mark.parametrize("first", BOTH, ids=lambda case: f"{case[0]}={case[2]}")
def test_the_two_ways_of_setting_fields_mean_one_thing(first, digits):
    """Alone, and with every other field, one or the other here or there."""
    for second in [None, *BOTH]:
        if second is not None and second[1] == first[1]:
            continue
        cases = [first] if second is None else [first, second]
        found = []
        for here in range(2 ** len(cases)):
            argument = [(c[0], c[2]) for i, c in enumerate(cases) if here >> i & 1]
            overrides = [(c[1], c[2]) for i, c in enumerate(cases) if not here >> i & 1]
            source = digits._replace(argument=joined(argument), overrides=overrides)
            found.append(source.make().to_dict())
        assert all(one == found[0] for one in found), second


def test_masks_are_trained_as_they_are_unless_a_method_is_named(digits):
    def made(*overrides, argument="", implied=()):
        source = digits._replace(argument=argument, overrides=overrides)
        config = source.make(implied=implied)
        return config.method.name, config.sup.enabled

    assert made() == ("rigl", True)
    assert made(("masks", "x")) == ("static", False)
    assert made(("mask.name", "random")) == ("static", False)
    assert made(("masks", "x"), ("sup.enabled", "true")) == ("static", True)
    assert made(("masks", "x"), argument="method=set") == ("set", False)
    assert made(("masks", "none"), argument="masks=x") == ("rigl", True)
    assert made(("method.name", "rigl"), argument="masks=x") == ("rigl", False)
    assert made(implied=["mask.name"]) == ("static", False)


def test_an_override_is_as_if_the_argument_had_not_the_field(digits):
    source = digits._replace(
        argument="model=mlp,tost=released,seed=1", overrides=[("tost.parts", "soft")]
    )
    config = source.make([("seed", "2")])
    assert (config.tost.parts, config.tost.released) == ("soft", False)
    assert (config.seed, config.model.name) == (2, "mlp")
    assert tuple(config.model.options.features) == (256, 128)


def test_settling_twice_changes_nothing():
    given = ["masks", "tost.parts"]
    config: Any = common.default()
    config.masks, config.tost.parts = "x", "released"
    once = common.settle(config, given).to_dict()
    assert common.settle(config, given).to_dict() == once
    assert once["tost"]["released"] is True


def test_every_field_can_be_set_in_both_ways(digits):
    texts = {
        "int": "1",
        "float": "0.5",
        "bool": "true",
        "ints": "1,2",
        "strs": "(a,b)",
        "str": "text",
        "path": "/a/b,c/d",
    }
    for name, field in FIELDS.items():
        if name in ("tost.parts", "model.name"):
            continue
        text = texts[field.kind.removesuffix(" or none")]
        one = digits._replace(argument=f"{name}={text}").make()
        other = digits._replace(overrides=[(name, text)]).make()
        assert one.to_dict() == other.to_dict(), name
        assert flat(one)[name] == read_value(name, name, text)
