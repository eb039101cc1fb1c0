"""The commands that look at the networks of a finished run."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import evaluate as evaluating
from experiments.evaluate import main as evaluate_main
from experiments.export import export, size_table
from experiments.export import main as export_main
from experiments.runs.networks import chosen_files, network_files
from sup_tickets.training.condensed_files import load_condensed
from sup_tickets.training.network_files import (
    load_dense,
    load_sparse,
    provenance_of,
    save_sparse,
)
from sup_tickets.training.state import Network
from tests.helpers import assert_same


def network(value, density=0.1, size=(300, 200)):
    mask = np.arange(np.prod(size)).reshape(size) % round(1 / density) == 0
    kernel = np.where(mask, np.float32(value), np.float32(0))
    params = {"dense": {"kernel": kernel, "bias": np.ones(4, np.float32)}}
    return Network(params, {}, {"dense": {"kernel": mask, "bias": None}})


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "run"
    save_sparse(run / "final/network.safetensors", network(0.5), provenance={"seed": 3})
    for i in range(1, 12):
        save_sparse(run / f"tickets/ticket-{i}.safetensors", network(i))
    config = {"evaluate": "validation", "seed": 0}
    (run / "config.json").write_text(json.dumps(config))
    return run


# --- Names ----------------------------------------------------------------------------


def test_networks_are_in_order(folder):
    names = [f"tickets/ticket-{i}" for i in range(1, 12)]
    assert list(network_files(folder)) == ["final", *names]
    assert list(chosen_files(folder, ["ticket 2", "tickets/ticket-10", "final"])) == [
        *("tickets/ticket-2", "tickets/ticket-10", "final")
    ]
    assert list(chosen_files(folder, ["all"])) == ["final", *names]


def test_unknown_networks_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no network 'finale'; did you mean 'final'"):
        chosen_files(folder, ["finale"])
    with pytest.raises(ValueError, match="has no network; is it the folder of a finis"):
        network_files(tmp_path)


def test_a_run_that_is_not_finished_says_how_to_go_on(folder):
    for step in (5, 600, 1000):
        (folder / f"checkpoints/{step}").mkdir(parents=True)
    (folder / "final/network.safetensors").unlink()
    text = r"run is not finished: it was saved up to step 1000; "
    with pytest.raises(ValueError, match=f"{text}start its command again to go on$"):
        chosen_files(folder, ["final"])
    by = {"sessions": [{"by": {"command": "a"}}, {"by": {"command": "python -m b"}}]}
    (folder / "made_by.json").write_text(json.dumps(by))
    with pytest.raises(ValueError, match=f"{text}to go on: python -m b$"):
        chosen_files(folder, ["all", "final"])
    assert list(chosen_files(folder, ["ticket-3"])) == ["tickets/ticket-3"]
    shutil.rmtree(folder / "tickets")
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ValueError, match=r"up to step 0; to go on: python -m b$"):
        chosen_files(folder, ["all"])


# --- Evaluating -----------------------------------------------------------------------


@pytest.fixture
def fake_build(monkeypatch):
    """A run whose accuracy is the first weight, over the split's number."""
    closed = []

    def score(net, split):
        first = float(net.params["dense"]["kernel"][0, 0])
        accuracy = first / {"test": 10, "validation": 20}[split]
        return dict(accuracy=accuracy, nll=0.25, ece=0.1, brier=0.2, examples=7)

    def build(config, *, devices=None):
        assert config.seed == 0
        shapes = jax.eval_shape(lambda: network(1).params)
        return SimpleNamespace(
            like=lambda step: SimpleNamespace(train=SimpleNamespace(params=shapes)),
            plan=SimpleNamespace(total_steps=0),
            layout=SimpleNamespace(of=lambda network, params: None),
            score=score,
            inputs=SimpleNamespace(close=lambda: closed.append(1)),
        )

    monkeypatch.setattr(evaluating.build, "build", build)
    return closed


def test_networks_are_evaluated_again(folder, fake_build, capsys):
    evaluate_main([str(folder)])
    lines = capsys.readouterr().out.splitlines()
    assert "validation accuracy" in lines[0]
    assert [x.strip() for x in lines[2].split("|")[1:-1]] == [
        *("final", "2.50%", "0.2500", "0.1000", "0.2000", "7", "6000 / 60000")
    ]
    evaluate_main(
        [str(folder), "--split=test", "--network=ticket-2", "--network=final"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines] == [
        *("test accuracy", "-------------", "20.00%", "5.00%")
    ]
    assert fake_build == [1, 1]


def test_a_network_of_another_model_is_refused(folder, fake_build):
    save_sparse(folder / "final/network.safetensors", network(1, size=(3, 2)))
    with pytest.raises(SystemExit, match=r"error: .*network.safetensors has shape \(3"):
        evaluate_main([str(folder)])
    assert fake_build == [1]


def test_evaluating_what_is_not_there(tmp_path, folder):
    with pytest.raises(SystemExit, match=r"error: .*no config.json"):
        evaluate_main([str(tmp_path)])
    (folder / "final/network.safetensors").write_bytes(b"damaged")
    with pytest.raises(SystemExit, match=r"error: .*cannot be loaded as a network"):
        evaluate_main([str(folder)])


# --- Exporting ------------------------------------------------------------------------


def test_exported_files_hold_the_network(folder, tmp_path, capsys):
    export_main([str(folder), f"--out={tmp_path / 'out'}"])
    ours = network(0.5)
    dense = load_dense(tmp_path / "out/final.dense.safetensors")
    assert_same(dense.params, ours.params)
    sparse = tmp_path / "out/final.sparse.safetensors"
    assert_same(load_sparse(sparse), ours)
    source = str(folder / "final/network.safetensors")
    assert provenance_of(sparse) == {"seed": 3, "exported_from": source}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == [
        *("final.dense.safetensors", "final.sparse.safetensors")
    ]


def test_sizes_are_those_of_the_files(folder, tmp_path):
    dense, sparse = export(folder, tmp_path / "out", networks=["ticket-3"])
    assert dense.path.name == "ticket-3.dense.safetensors"
    assert (dense.size, sparse.size) == (
        *(dense.path.stat().st_size, sparse.path.stat().st_size),
    )
    assert dense.weights == 60004 and dense.active == sparse.active == 6004
    assert dense.ideal == 32
    assert sparse.ideal == pytest.approx(32 * 6004 / 60004 + 60000 / 60004)
    assert 1 < sparse.bits / sparse.ideal < 1.05
    line = size_table([sparse]).splitlines()[2]
    assert f"| {sparse.bits:.3f} " in line and f"| {sparse.ideal:.3f} |" in line


def test_one_format_of_all_networks(folder, tmp_path):
    export_main(
        [str(folder), f"--out={tmp_path / 'o'}", "--format=sparse", "--network=all"]
    )
    assert len(list((tmp_path / "o").glob("*.safetensors"))) == 12
    export_main([str(folder), f"--out={tmp_path / 'c'}", "--format=condensed"])
    (condensed,) = export(folder, tmp_path / "c", formats=["condensed"])
    assert 1 < condensed.bits / condensed.ideal < 1.05
    (path,) = (tmp_path / "c").glob("*.safetensors")
    assert path.name == "final.condensed.safetensors" and load_condensed(path).params
    with pytest.raises(SystemExit, match=r"error: .*no network 'x'"):
        export_main([str(folder), f"--out={tmp_path / 'o'}", "--network=x"])


def test_only_what_was_exported_is_replaced(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "final.dense.safetensors").write_text("mine")
    with pytest.raises(ValueError, match=r"final.dense.safetensors is in the way"):
        export(folder, out)
    assert [p.name for p in out.iterdir()] == ["final.dense.safetensors"]
    first = export(folder, out, formats=["sparse"])
    assert export(folder, out, formats=["sparse"]) == first
    assert (out / "final.dense.safetensors").read_text() == "mine"
