"""The benchmark of scale: what a program exchanges, rows of pages, first steps."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments import command
from experiments.benchmarks import scale, table
from experiments.benchmarks.exchanges import Exchange, exchanges, executed
from experiments.benchmarks.table import figure_of
from experiments.config.flags import Parser
from sup_tickets.training.mesh import data_mesh


def test_what_is_exchanged_is_counted_as_often_as_it_happens():
    place = NamedSharding(data_mesh(), P("data"))
    x = jax.device_put(jnp.ones(64), place)

    def add_up(x, times):
        def add(_, total):
            return total + jnp.sum(jnp.where(x > total, x, 0))

        return jax.lax.fori_loop(0, times, add, jnp.float32(0))

    program = jax.jit(add_up).lower(x, jnp.int32(3)).compile()
    (found,) = exchanges(program)
    assert (found.operation, found.size) == ("all-reduce", 4)
    assert executed(program, x, jnp.int32(3)) == [found] * 3
    assert executed(program, x, jnp.int32(0)) == []


@pytest.mark.parametrize(
    ("shape", "size"),
    [("f32[]", 4), ("pred[3,5]{1,0}", 15), ("(s32[7], bf16[2,2]{1,0})", 36),
     ("s64[0]", 0), ("u8[10]", 10), ("f8e4m3fn[6]", 6)],
)  # fmt: skip
def test_bytes_of_a_shape(shape, size):
    assert Exchange("all-gather.1", "all-gather", shape).size == size


def test_marks_of_other_pages_are_read_there(tmp_path, monkeypatch):
    for page, what, _ in scale.CITED:
        if page == "core":
            figure = figure_of(page, what)
            assert figure is not None and figure > 0, what
    monkeypatch.setattr(table, "_PAGES", tmp_path)
    assert figure_of("core", "rewire, passes") is None
    (tmp_path / "bench_core.md").write_text("| rewire, passes | 1.5e2 | 25 | x |\n")
    assert figure_of("core", "rewire, passes") == 150
    (row,) = scale.cited_rows()
    assert (row.what, row.figure, row.target) == ("rewire, passes", 150, 25)


def test_programs_over_the_mesh_exchange_counts_alone():
    shapes = {"a": (16, 64), "b": (3, 3, 8, 64)}
    rng = np.random.default_rng(0)
    tree = {
        n: jnp.asarray(rng.standard_normal(s, np.float32)) for n, s in shapes.items()
    }
    rows = list(scale.mesh_rows(tree))
    number, rewire, superposition, pack = (row.figure for row in rows)
    assert 10 < number < 40
    assert [row.note.split("; ")[-1] for row in rows[1:3]] == ["all-reduce"] * 2
    weights = 4 * sum(np.prod(shape) for shape in shapes.values())
    assert rewire * weights < 40 * 3 * 4 * len(shapes)
    assert superposition < rewire
    assert pack * weights == weights / 4 / 8  # bits, of all devices


def test_memory():
    row = scale.memory_row("resnet20")
    assert 1 / 8 < row.figure < 0.2


@pytest.mark.slow
def test_the_starts_of_two_runs_are_measured():
    words = ["--config=configs/digits.py:model=mlp"]
    assert scale.start_row(words, repeats=1).figure > 0  # a time is never asserted
    with pytest.raises(RuntimeError, match=r"--config.sed=1 .* ended before its first"):
        scale.start_row([*words, "--config.sed=1"], repeats=1)


@pytest.mark.parametrize(("given", "least"), [(None, 0.0), ("0.5", 0.25)])
def test_commands_keep_all_programs_where_nothing_else_is_asked(
    given, least, monkeypatch
):
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    monkeypatch.delenv(name.upper(), raising=False)
    if given is not None:
        monkeypatch.setitem(os.environ, name.upper(), given)
    try:
        jax.config.update(name, 0.25)
        command.start(Parser("experiments.none", "Does nothing."), lambda _: None, [])
        assert getattr(jax.config, name) == least
    finally:
        jax.config.update(name, before)
