"""Singular values of the Jacobians of networks that runs left behind."""

import csv
import json
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import jacobian
from experiments.jacobian import jacobian_values, main, singular_values, values_table
from sup_tickets.data.resident import Weighted
from sup_tickets.orthogonal import exact_orthogonal
from sup_tickets.training.network_files import save_sparse
from sup_tickets.training.state import Network
from tests.helpers import assert_same

# --- Singular values ------------------------------------------------------------------


def test_singular_values_of_a_matrix():
    w = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    values = singular_values(lambda w, x: x @ w, w, jnp.ones((3, 6)))
    assert values.shape == (3, 4) and values.dtype == np.float64
    wanted = np.linalg.svd(w.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(values, np.tile(wanted, (3, 1)), rtol=1e-5)


def test_singular_values_differ_between_examples():
    # Of x * x, elementwise, they are 2 |x|; images are taken as they are.
    x = jnp.array([[[1.0, -3.0]], [[0.0, 0.5]]])
    values = singular_values(lambda _, x: x * x, (), x)
    np.testing.assert_allclose(values, [[6, 2], [1, 0]])


def test_orthogonal_layers_have_singular_values_of_1(key):
    params = {f"{i}": jnp.zeros((20, 20)) for i in range(7)}
    counts = dict.fromkeys(params, 100)
    made, _ = exact_orthogonal(key, params, counts, gain=1.1)

    def apply(params, x):
        for kernel in params.values():
            x = x @ kernel
        return x

    values = singular_values(apply, made, jnp.ones((2, 20)))
    np.testing.assert_allclose(values, 1.1**7, rtol=1e-5)


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="the Jacobian is not finite"):
        singular_values(lambda w, x: x * w, jnp.nan, jnp.ones((1, 2)))


# --- Runs -----------------------------------------------------------------------------


class Scaled(nn.Module):
    """As many scores as inputs; batch norm must run on its stored statistics."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.BatchNorm(use_running_average=not train, epsilon=0.0, name="bn")(x)
        return x @ self.param("kernel", nn.initializers.ones, (4, 4))


def network(kernel, variance=1.0):
    params = {"bn": {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}}
    kernel = np.asarray(kernel, np.float32)
    masks = {"bn": {"scale": None, "bias": None}, "kernel": kernel != 0}
    stats = {"mean": np.zeros(4, np.float32), "var": np.full(4, variance, np.float32)}
    return Network(params | {"kernel": kernel}, {"bn": stats}, masks)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with two networks, on a split of two batches, one of them padded."""
    folder = tmp_path / "run"
    stored = network(np.diag([8.0, 4, 2, 1]), variance=4.0)
    save_sparse(folder / "final/network.safetensors", stored)
    ticket = network(np.diag([3.0, 3, 3, 0]))
    save_sparse(folder / "tickets/ticket-1.safetensors", ticket)
    (folder / "config.json").write_text(json.dumps({"evaluate": "test", "seed": 0}))
    images = np.zeros((8, 4), np.uint8)
    weights = np.ones(8, np.float32), np.float32([1, 1, 0, 0, 0, 0, 0, 0])
    split = [Weighted(images, None, of_batch) for of_batch in weights]
    first = network(np.eye(4))
    train = SimpleNamespace(
        step=3,
        params=first.params,
        model_state=first.model_state,
        method=SimpleNamespace(masks=first.masks),
    )
    closed = []

    def build(config, *, devices):
        assert config.seed == 0 and len(devices) == 1
        return SimpleNamespace(
            plan=SimpleNamespace(total_steps=0),
            like=lambda step: SimpleNamespace(train=train),
            init=lambda: SimpleNamespace(train=train),
            experiment=SimpleNamespace(
                final_form=lambda state, step: {(id(train), 3): first}[id(state), step]
            ),
            model=Scaled(),
            inputs=SimpleNamespace(
                close=lambda: closed.append(1),
                normalize=lambda images: images.astype(jnp.float32) / 2,
                splits={"test": lambda: split},
            ),
        )

    monkeypatch.setattr(jacobian.build, "build", build)
    yield folder
    assert len(closed) <= 1


def test_networks_of_a_run(run):
    found = jacobian_values(run, networks=["initial", "all"], examples=9)
    assert list(found) == ["initial", "final", "tickets/ticket-1"]
    wanted = [[1, 1, 1, 1], [4, 2, 1, 0.5], [3, 3, 3, 0]]
    for values, row in zip(found.values(), wanted, strict=True):
        np.testing.assert_allclose(values, [row] * 9, rtol=1e-5)


def test_the_command_writes_a_picture_and_values(run, capsys):
    main([str(run), "--network=ticket-1", "--network=final", "--examples=2"])
    lines = capsys.readouterr().out.splitlines()
    rows = [[x.strip() for x in line.split("|")[1:-1]] for line in lines[2:4]]
    assert rows == [
        ["tickets/ticket-1", "0", "3", "3", "inf", "2", "4"],
        ["final", "0.5", "1.5", "4", "8", "2", "4"],
    ]
    assert lines[-1] == f"{run / 'jacobian.png'} and jacobian.csv"
    assert (run / "jacobian.png").read_bytes()[1:4] == b"PNG"
    with open(run / "jacobian.csv", newline="") as file:
        values = list(csv.DictReader(file))
    assert len(values) == 2 * 2 * 4
    assert values[-1] == {
        **{"network": "final", "example": "2", "rank": "4", "singular_value": "0.5"}
    }


def test_the_files_go_where_they_are_told(run, tmp_path, capsys):
    main([str(run), f"--out={tmp_path / 'new' / 'a.png'}"])
    files = {path.name for path in (tmp_path / "new").iterdir()}
    assert (
        files == {"a.png", "a.csv", ".written.json"}
        and "final" in capsys.readouterr().out
    )
    assert not (run / "jacobian.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network=finale"], r"no network 'finale'; did you mean 'final'"),
        (["--examples=0"], "examples must be a whole number of at least 1, got 0"),
        (
            ["--examples=11"],
            "examples must be at most the 10 of the test spl.*, got 11",
        ),
        (["--out=a.pdf"], r"--out must be a name that ends in .png, got 'a.pdf'"),
    ],
)
def test_wrong_flags_are_refused(run, arguments, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        main([str(run), *arguments])


def test_what_is_no_run_is_refused(tmp_path, run):
    with pytest.raises(SystemExit, match=r"^error: .*not the folder of a run: no conf"):
        main([str(tmp_path)])
    save_sparse(run / "final/network.safetensors", network(np.eye(3)))
    with pytest.raises(SystemExit, match=r"^error: network 'final' has shape \(3, 3\)"):
        main([str(run)])
    (run / "final/network.safetensors").write_bytes(b"damaged")
    with pytest.raises(SystemExit, match=r"^error: .*cannot be loaded as a network"):
        main([str(run)])


def test_a_network_of_nan_is_refused(run):
    save_sparse(run / "final/network.safetensors", network(np.full((4, 4), np.nan)))
    with pytest.raises(SystemExit, match=r"^error: network 'final': .* not finite"):
        main([str(run)])


def test_pictures_without_positive_values(tmp_path):
    jacobian.draw_values(tmp_path / "zero.png", {"final": np.zeros((2, 3))})
    assert (tmp_path / "zero.png").stat().st_size
    assert "| inf " in values_table({"final": np.zeros((2, 3))})


def test_networks_are_left_as_they_are(run):
    before = network(np.diag([8.0, 4, 2, 1]), variance=4.0)
    after = jacobian._loaded(run, ["final"])["final"]
    jacobian_values(run)
    assert_same(after, before)
    assert jax.tree.leaves(after)
