"""The comparison of ways to train masks."""

import csv
import json
from pathlib import Path

import jax
import pytest

from experiments.lottery import Options
from experiments.tost_study import main, run_study, study_of, write_tables
from sup_tickets.masks import count
from sup_tickets.training.network_files import load_sparse, provenance_of
from tests.fabricated import row
from tests.test_experiments import one

pytestmark = pytest.mark.usefixtures("loose")

ROOT = Path(__file__).parent.parent
TINY = (
    f"{ROOT / 'configs/digits.py'}:model=mlp,epochs=2,data.batch_size=256,"
    "data.training_examples=256,data.shrink=2"
)
LISTS = {
    "seeds": "3",
    "sparsities": "0.5",
    "masks": "snip,lottery",
    "tost": "false,soft",
}


@pytest.mark.slow
def test_a_study_goes_on_where_it_was(tmp_path, capsys):
    study = study_of(TINY, LISTS, Options(prune_fraction=0.4))
    assert run_study(study, tmp_path, devices=one()) == {}
    folders = sorted(p.name for p in tmp_path.glob("seed=*"))
    assert folders == [
        f"seed=3,sparsity=0.5,mask={mask},tost={tost}"
        for mask in ("lottery", "snip")
        for tost in ("false", "soft")
    ]
    # Both ways train the masks of the ticket, and those that SNIP finds.
    masks = {
        name: load_sparse(tmp_path / name / "final" / "network.safetensors").masks
        for name in folders
    }
    ticket = tmp_path / "lottery" / "seed=3" / "ticket-0.5.safetensors"
    assert provenance_of(ticket)["seed"] == 3
    same = jax.tree.map(
        lambda a, b, c: bool((a == b).all() and (b == c).all()),
        load_sparse(ticket).masks,
        *(masks[name] for name in folders[:2]),
    )
    assert all(jax.tree.leaves(same))
    (total,) = {int(count(found)) for found in masks.values()}
    with open(write_tables(tmp_path).with_suffix(".csv")) as file:
        rows = list(csv.DictReader(file))
    assert [(r["mask"], r["tost"], r["seed"]) for r in rows] == [
        (mask, tost, "3") for mask in ("lottery", "snip") for tost in ("false", "soft")
    ]
    results = json.loads((tmp_path / folders[0] / "results.json").read_text())
    assert results["rows"][-1]["active"] == total
    assert float(rows[0]["accuracy"]) == results["rows"][-1]["accuracy"]
    capsys.readouterr()
    assert run_study(study, tmp_path, devices=one()) == {}
    assert capsys.readouterr().out.count("this run is finished") == 6


def test_the_tables(tmp_path, capsys):
    accuracies = {"false": (0.80, 0.82), "soft": (0.81, 0.84), "skips": (0.79,)}
    for way, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            name = f"seed={seed},sparsity=0.9,mask=snip,tost={way}"
            (tmp_path / name).mkdir()
            results = {"rows": [row("final", accuracy)], "seconds": 1800}
            (tmp_path / name / "results.json").write_text(json.dumps(results))
            (tmp_path / name / "config.json").write_text(json.dumps({"seed": seed}))
    main(["--out", str(tmp_path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "tost.md")
    lines = (tmp_path / "tost.md").read_text().splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| snip")
    ]
    assert cells == [
        ["snip", "81.00 (1.41)", "79.00", "82.50 (2.12)"],
        ["snip", "-1.00", "+1.50 (0.71, p 0.2)"],
        ["snip", "0.380 (0.028)", "0.420", "0.350 (0.042)"],
    ]
    assert any(line.startswith("5 runs of 2.5 hours in all.") for line in lines)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"masks": "snip,luck"}, "masks must be one of"),
        ({"sparsities": "much"}, "sparsities must be numbers"),
        ({"seeds": ""}, "--grid has 'seeds='"),
        ({"tost": "hard"}, "tost must be true, false, released or some of"),
        ({"sparsities": "1.5"}, "config.method.sparsity must be"),
    ],
)
def test_a_study_that_is_wrong(change, text, tmp_path, capsys):
    words = [f"--{name}={value}" for name, value in {**LISTS, **change}.items()]
    with pytest.raises(SystemExit) as raised:
        main([f"--config={TINY}", f"--out={tmp_path}", *words])
    assert text in str(raised.value)
    assert not list(tmp_path.iterdir())
