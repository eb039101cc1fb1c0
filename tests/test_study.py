"""Studies: their runs, the phase 1 that arms share, the table and the page."""

import dataclasses

import chex
import jax
import numpy as np
import pandas as pd
import pytest

from experiments import study as command
from experiments.build.branch import course_of, difference_before
from experiments.reports import study as reports
from experiments.reports import study_diversity
from experiments.reports.columns import SCORES, score
from experiments.reports.study_page import write_page
from experiments.runs.layout import FINAL, member_name
from experiments.studies.values import Arm, Cell, Study
from sup_tickets.training.network_files import load_sparse, provenance_of

SMALL = (
    "configs/digits.py:model=mlp,sparsity=0.5,epochs=4,cycles=1,cycle_epochs=1,"
    "data.batch_size=256,method.update_every_steps=5,method.drop_schedule=constant,"
    "method.update_end_fraction=1.0,report.path_points=0"
)
STUDY = Study(
    title="A title",
    question="A question?",
    mirrors="no table",
    config=SMALL,
    cells=(Cell("RigL 50%", {"method": "rigl"}),),
    arms=(
        Arm("phase 1", {"sup": "false", "epochs": "3"}),
        Arm("base", {"sup": "false", "train.drop_epochs": "1,2"}),
        Arm("tickets, paper", {}),
    ),
    versus=(("tickets, paper", "base"), ("tickets, paper", "phase 1")),
    seeds=(0, 1),
    remarks="A remark.",
)


@pytest.mark.parametrize("name", command.study_names())
def test_the_given_studies_are_whole(name, tmp_path):
    study = command.read_study(name)
    source = command.source_of(study)
    assert score(study.score) in SCORES
    every = [unit for part in command.units(study) for unit in part]
    first = [unit for unit in every if unit.seed == study.seeds[0]]
    found = [
        member
        for unit in first
        for member in command.members(unit, tmp_path, source=source)
    ]
    names = {member.name for member in found}
    assert len(names) == len(found) == len(study.arms) * len(study.cells)
    for member in found[-len(study.arms) :]:
        course_of(member.config, epoch_steps=50)


def test_a_study_runs_branches_and_writes_its_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "read_study", lambda name: STUDY)
    fields = [("model.options.features", "(8,)")]
    alone = {"fields": fields, "devices": jax.devices()[:1]}
    assert command.run_study(STUDY, tmp_path, part=(1, 2), **alone) == {}
    told = capsys.readouterr().out
    assert told.count("begins with step 15 of ") == 2  # both endings, of one phase 1
    assert list(reports.gather_study(STUDY, tmp_path)["seed"]) == [0, 0, 0]

    assert command.run_study(STUDY, tmp_path, part=(2, 2), **alone) == {}
    command.main(["small", f"--out={tmp_path}", f"--config.{fields[0][0]}=(8,)"])
    assert capsys.readouterr().out.count("3 runs, 3 of them finished") == 2
    rows = reports.read_table(STUDY, tmp_path / "small.csv")
    assert list(rows["arm"]) == [arm.name for arm in STUDY.arms for _ in range(2)]
    assert rows["accuracy"].between(0, 1).all()
    assert rows["mean_ticket"].notna().tolist() == [False] * 4 + [True] * 2
    page = (tmp_path / "small.md").read_text()
    for text in ("A question? (no table)", "A remark.", "python -m experiments.study"):
        assert text in page
    assert "seeds 0, 1; on cpu, jax" in page and "of the test images" in page
    assert (tmp_path / "small.png").stat().st_size > 1000

    # From the table alone it is the same page.
    again = tmp_path / "again"
    command.main(
        ["small", f"--out={again}", f"--csv={tmp_path / 'small.csv'}"],
    )
    for name in ("small.csv", "small.md"):
        assert (again / name).read_text() == (tmp_path / name).read_text()


@pytest.mark.parametrize("name, epoch_steps", [("full", 391), ("claim_lenet", 50)])
def test_arms_share_the_phase_1_that_is_trained_first(name, epoch_steps, tmp_path):
    study = command.read_study(name)
    runs = command.members(
        command.units(study)[0][0], tmp_path, source=command.source_of(study)
    )
    first, *others = (course_of(r.config, epoch_steps=epoch_steps) for r in runs)
    own = "base, own schedule"
    assert study.arms[0].name == "phase 1"
    assert name != "full" or study.arms[-1].name == own
    assert [difference_before(first, other) is None for other in others] == [
        arm.name != own for arm in study.arms if arm.name != "phase 1"
    ]


def test_a_file_that_no_study_wrote_is_left_alone(tmp_path, capsys):
    (tmp_path / "claim.md").write_text("mine")
    with pytest.raises(SystemExit):
        command.main(["claim", f"--out={tmp_path}"])
    assert "claim.md is in the way" in capsys.readouterr().err
    assert (tmp_path / "claim.md").read_text() == "mine"


def table(values):
    """Rows of a study: ``{(cell, arm): accuracies by seed}``."""
    rows = [
        {"cell": cell, "arm": arm, "seed": seed, "accuracy": accuracy}
        for (cell, arm), accuracies in values.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    return pd.DataFrame(rows, columns=list(reports.columns(STUDY)), dtype=object)


def test_differences_are_paired_by_seed():
    rows = table(
        {
            ("a", "x"): [0.51, 0.63, 0.72],
            ("a", "y"): [0.50, 0.60, 0.70, 0.90],  # the last has no partner
            ("b", "x"): [0.50, 0.50],
            ("b", "y"): [0.52, 0.54],
        }
    )
    a, b = reports.differences(STUDY, rows, "x", "y")
    # Differences 1, 3, 2: mean 2, deviation 1; t of 2 degrees at 0.975 is 4.30265.
    assert (a.mean, a.wins, a.sign) == (pytest.approx(2), 3, 0)
    assert a.half_width == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
    # Differences -2, -4: mean -3, deviation sqrt 2; t of 1 degree is 12.7062.
    assert (b.mean, b.wins, b.sign) == (pytest.approx(-3), 0, 0)
    assert b.half_width == pytest.approx(12.7062, rel=1e-5)
    text = reports.verdict("x", "y", [a, b])
    assert "better on average in 1 of 2 cells (+2.00, -3.00 points), in 3 of 5" in text
    assert "above 0 in 0 and below 0 in 0" in text


def test_less_perplexity_is_better():
    study = dataclasses.replace(STUDY, score="perplexity")
    shares = table({("a", "x"): [0.30, 0.31], ("a", "y"): [0.32, 0.34]})
    rows = shares.rename(columns={"accuracy": "perplexity"}).astype(
        {"perplexity": float}
    )
    rows["perplexity"] *= 100
    (found,) = reports.differences(study, rows, "x", "y")
    # Differences -2, -3: mean -2.5, half width 12.7062 x sqrt(1/2) / sqrt(2).
    assert (found.mean, found.wins, found.better) == (pytest.approx(-2.5), 2, True)
    assert found.half_width == pytest.approx(12.7062 / 2, rel=1e-5)
    text = reports.verdict("x", "y", [found])
    assert (
        "better on average in 1 of 1 cells (-2.50, less is better), in 2 of 2" in text
    )
    assert "below 0 in 0 and above 0 in 0" in text
    assert reports.columns(study)[4:6] == ("perplexity", "accuracy")


def test_what_superposing_adds_is_ranked_against_how_far_apart_tickets_are(tmp_path):
    rows = table({("a", "x"): [0.60, 0.63, 0.70], ("a", "y"): [0.50, 0.40, 0.30]})
    rows["mean_ticket"] = rows["accuracy"] - [0.01, 0.02, 0.04, 0.06, 0.05, 0.03]
    rows["overlap"] = [0.1, 0.2, 0.4, 0.6, 0.5, 0.3]  # as the gain, in both views
    rows["disagreement"] = [0.6, 0.5, 0.3, 0.1, 0.2, 0.4]  # against it
    gains = study_diversity.with_gains(STUDY, rows)
    np.testing.assert_allclose(gains["gain"], [1, 2, 4, 6, 5, 3])
    found = study_diversity.correlations(gains)
    assert found.rows == [
        ["different answers", "6", "-1.00 (p 0)", "-1.00 (p 0)"],
        ["overlap of masks", "6", "+1.00 (p 0)", "+1.00 (p 0)"],
    ]
    # A cell with a single seed counts over all runs alone.
    single = gains.iloc[[0]].assign(cell="b", overlap=0.0, disagreement=1.0, gain=0.0)
    found = study_diversity.correlations(pd.concat([gains, single], ignore_index=True))
    assert found.rows[1] == ["overlap of masks", "7", "+1.00 (p 0)", "+1.00 (p 0)"]
    # Of one value there is no correlation, and of three runs none is worth a line.
    same = study_diversity.correlations(gains.assign(overlap=1.0))
    assert same.rows[1][2:] == ["", ""]
    assert study_diversity.correlations(gains[:3]) is None
    less = dataclasses.replace(STUDY, score="nll")
    nll = rows.rename(columns={"accuracy": "nll", "nll": "accuracy"})
    np.testing.assert_allclose(
        study_diversity.with_gains(less, nll)["gain"], -gains["gain"] / 100
    )
    study_diversity.draw_gains(tmp_path / "x.png", STUDY, gains)
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_each_arm_is_compared_in_the_cell_that_validation_chooses(tmp_path):
    study = dataclasses.replace(
        STUDY,
        score="perplexity",
        choice="dropout",
        cells=(Cell("dropout 0.2", {}), Cell("dropout 0.4", {})),
        versus=(("base", "phase 1"),),
    )
    cells = [("base", cell.name) for cell in study.cells]
    cells += [("phase 1", cell.name) for cell in study.cells]
    # The test words would choose otherwise: they are not asked.
    tests = ([30, 31], [20, 21], [40, 41], [50, 54])
    validations = ([10, 11], [12, 13], [15, 16], [20, 9])
    rows = pd.DataFrame(
        [
            {"arm": arm, "cell": cell, "seed": seed, "validation": v, "perplexity": t}
            for (arm, cell), t2, v2 in zip(cells, tests, validations, strict=True)
            for seed, (t, v) in enumerate(zip(t2, v2, strict=True))
        ],
        columns=list(reports.columns(study)),
        dtype=object,
    )
    chosen = {"base": "dropout 0.2", "phase 1": "dropout 0.4"}  # 10.5, and 14.5
    assert reports.chosen_cells(study, rows) == chosen
    best = reports.at_choice(study, rows)
    (found,) = reports.differences(study, best, "base", "phase 1")
    assert found.cell == "chosen dropout"
    assert found.mean == pytest.approx(-21.5) and found.wins == 2  # 20, 23

    page = write_page(study, "page", rows, tmp_path).read_text()
    assert "## The choice of dropout" in page and "-21.50" in page
    (line,) = (line for line in page.splitlines() if line.startswith("| chosen  "))
    assert [cell.strip() for cell in line.split("|")[2:-1]] == [
        *("dropout 0.4", "dropout 0.2")  # in the order of the arms
    ]


def test_one_seed_has_no_interval():
    rows = table({("a", "x"): [0.5], ("a", "y"): [0.4]})
    (found,) = reports.differences(STUDY, rows, "x", "y")
    assert found.sign == 0 and found.half_width != found.half_width
    assert reports.differences(STUDY, rows, "x", "z") == []


def test_parts_are_all_units_once():
    study = dataclasses.replace(
        STUDY, cells=(Cell("a", {}), Cell("b", {}), Cell("c", {}))
    )
    every = command.units(study)
    assert [(unit.seed, unit.cell.name) for part in every for unit in part] == [
        *((0, "a"), (0, "b"), (0, "c"), (1, "a"), (1, "b"), (1, "c"))
    ]
    parts = [every[i::4] for i in range(4)]
    assert sum(map(len, parts)) == len(every) == 6


def test_cells_that_share_a_lottery_are_of_one_part():
    cells = tuple(
        Cell(f"{model} {sparsity}", {"model": model, "sparsity": sparsity})
        for model in ("mlp", "conv")
        for sparsity in ("0.5", "0.9")
    )
    arms = (Arm("plain", {}), Arm("drawn", {"mask": "lottery"}))
    study = dataclasses.replace(STUDY, cells=cells, arms=arms, versus=(), seeds=(3,))
    every = command.units(study)
    assert [[u.cell.name for u in part] for part in every if part[0].drawn] == [
        ["mlp 0.5", "mlp 0.9"],
        ["conv 0.5", "conv 0.9"],
    ]
    assert [len(part) for part in every if not part[0].drawn] == [1] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"versus": (("base", "bass"),)}, "versus names 'bass'"),
        ({"cells": (Cell("a", {}), Cell("a", {}))}, "cell 'a' is there twice"),
        ({"seeds": (1, 1)}, "seeds must be some and all different"),
        ({"seeds": ()}, "seeds must be some"),
    ],
)
def test_studies_that_are_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(STUDY, **change)


@pytest.mark.slow
def test_a_study_with_a_lottery_goes_on_where_it_was(tmp_path, capsys):
    ways = (Arm("plain", {"tost": "false"}), Arm("soft", {"tost": "soft"}))
    study = dataclasses.replace(
        STUDY,
        config=(
            "configs/digits.py:model=mlp,epochs=2,data.batch_size=256,"
            "data.training_examples=256,data.shrink=2"
        ),
        cells=tuple(
            Cell(
                f"{mask} {100 * sparsity:g}%", {"mask": mask, "sparsity": f"{sparsity}"}
            )
            for mask, sparsity in (("snip", 0.5), ("lottery", 0.5), ("lottery", 0.7))
        ),
        arms=ways,
        versus=(("soft", "plain"),),
        seeds=(3,),
        prune_fraction=0.4,
    )
    one = jax.devices()[:1]
    with jax.numpy_dtype_promotion("standard"):
        assert command.run_study(study, tmp_path, devices=one) == {}
    # Both ways train the masks of the ticket, and those that SNIP finds.
    for cell in study.cells:
        masks = [
            load_sparse(
                tmp_path / member_name(cell.name, arm.name, 3) / f"{FINAL}.safetensors"
            ).masks
            for arm in ways
        ]
        chex.assert_trees_all_equal(*masks)
        if cell.fields["mask"] == "lottery":
            file = f"ticket-{cell.fields['sparsity']}.safetensors"
            ticket = tmp_path / "lottery" / "seed=3" / file
            chex.assert_trees_all_equal(load_sparse(ticket).masks, masks[0])
            assert provenance_of(ticket)["seed"] == 3
    rows = reports.gather_study(study, tmp_path).set_index(["cell", "arm"])
    flops = rows["training_flops"].astype(float) / rows["dense_training_flops"]
    # Rounds at 0, 40, 64% were before the ticket of 70%; one less for that of 50%.
    assert flops["snip 50%", "plain"] < 1 < flops["lottery 50%", "plain"]
    assert flops["lottery 70%", "plain"] > flops["lottery 50%", "plain"]
    capsys.readouterr()
    with jax.numpy_dtype_promotion("standard"):
        assert command.run_study(study, tmp_path, devices=one) == {}
    assert capsys.readouterr().out.count("this run is finished") == 6 + 2 + 3
