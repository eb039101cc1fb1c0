"""Checks that two trees agree."""

import jax.numpy as jnp
import pytest

from sup_tickets.tree_checks import check_same_leaves


def test_check_same_leaves_names_the_first_difference():
    like = {"a": jnp.ones(2), "b": jnp.ones((2, 3))}
    check_same_leaves("masks", {"a": None, "b": jnp.ones((2, 3))}, "params", like)
    with pytest.raises(ValueError, match="params has a leaf 'b' that masks lacks"):
        check_same_leaves("masks", {"a": None}, "params", like)
    with pytest.raises(ValueError, match="masks has a leaf 'c' that params lacks"):
        check_same_leaves("masks", {**like, "c": None}, "params", like)
    with pytest.raises(ValueError, match=r"masks has shape \(2,\) at leaf 'b', wher"):
        check_same_leaves("masks", {"a": None, "b": jnp.ones(2)}, "params", like)
    with pytest.raises(ValueError, match="at leaf 'a', where params has None"):
        check_same_leaves("masks", {"a": jnp.ones(2)}, "params", {"a": None})
