"""Replicas have the folders, the logs and the results of single runs."""

import json
import shutil
from types import SimpleNamespace

import jax
import pytest

from experiments import sweep as sweeping
from experiments import turns
from experiments.build.shared import programs_of
from experiments.grid import parse_grid
from experiments.replicas import Member, run_together
from experiments.run import run
from experiments.runs.stopping import RunCheckpointer, Stopped
from experiments.sweep import members
from experiments.turns import Checked, grouped
from sup_tickets.training.network_files import load_sparse
from tests.test_experiments import ARGUMENT, ROOT, config_of, one
from tests.test_training import counts

SEEDS = (0, 3)


OTHER = {"method.sparsity": 0.8, "train.learning_rate": 0.05}


def members_of(out, **changes):
    """Two seeds, and one of them with other numbers."""
    quick = {"report.path_points": 0, **changes}
    configs = [config_of(seed=seed, **quick) for seed in SEEDS]
    configs.append(config_of(seed=SEEDS[1], **quick, **OTHER))
    names = [f"seed={SEEDS[0]}", f"seed={SEEDS[1]}", "other"]
    return [Member(n, c, out / n) for n, c in zip(names, configs, strict=True)]


def events_of(path):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [(e["event"], e["step"], e.get("active")) for e in map(json.loads, lines)]


def results_of(path):
    return json.loads((path / "results.json").read_text())


def files_of(path):
    found = (str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
    return {name for name in found if not name.startswith(("checkpoints", "tensorb"))}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Runs of two seeds, and of another sparsity and rate, by one program."""
    out = tmp_path_factory.mktemp("together")
    assert run_together(members_of(out), devices=one()) == {}
    return out


def test_a_replica_leaves_what_a_run_leaves(together, tmp_path):
    member = members_of(together)[2]
    run(member.config, tmp_path / "alone", devices=one())
    ours, theirs = member.path, tmp_path / "alone"
    assert files_of(ours) == files_of(theirs)
    assert events_of(ours) == events_of(theirs)
    for name in ("config.json", "plan.txt"):
        assert (ours / name).read_text() == (theirs / name).read_text()
    mine, wanted = results_of(ours), results_of(theirs)
    assert mine.keys() == wanted.keys() and mine["layers"] == wanted["layers"]
    assert mine["cost"]["training_flops"] == wanted["cost"]["training_flops"]
    for row, other in zip(mine["rows"], wanted["rows"], strict=True):
        assert row["nll"] == pytest.approx(other["nll"], abs=1e-3)
        assert row["active"] == other["active"]
    for other in members_of(together)[:2]:
        assert results_of(other.path)["rows"] != mine["rows"]


@pytest.mark.slow
def test_replicas_that_were_stopped_go_on_to_the_bit(together, tmp_path, monkeypatch):
    found = members_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpointer, "stopping", lambda self, step: step == 12)
        with pytest.raises(Stopped, match="stopped after 12 of 30 steps, all saved"):
            run_together(found, devices=one())
    shutil.copytree(found[0].path, tmp_path / "alone")
    assert run_together(found, devices=one()) == {}
    name = "final/network.safetensors"
    for member in found:
        wanted = (together / member.name / name).read_bytes()
        assert (member.path / name).read_bytes() == wanted
        assert events_of(member.path) == events_of(together / member.name)
    # A single run goes on from there too.
    run(found[0].config, tmp_path / "alone", devices=one())
    masks = load_sparse(tmp_path / "alone" / name).masks
    assert counts(masks) == counts(load_sparse(found[0].path / name).masks)
    # Finished ones are left alone.
    before = (found[0].path / "results.json").stat().st_mtime_ns
    assert run_together(found, devices=one()) == {}
    assert (found[0].path / "results.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_replica_whose_folder_is_anothers_fails_alone(together, tmp_path):
    found = members_of(tmp_path)
    shutil.copytree(together / found[1].name, found[0].path)
    failed = run_together(found, devices=one())
    assert list(failed) == [found[0].name]
    assert "holds another run: config.seed" in str(failed[found[0].name])
    assert (found[1].path / "report/summary.md").exists()


def test_what_cannot_go_together_is_one_line(tmp_path, monkeypatch):
    first, second, _ = members_of(tmp_path)
    changes = {"report.path_points": 0, "train.optimizer": "adamw"}
    other = second._replace(config=config_of(seed=3, **changes))
    with pytest.raises(ValueError, match=r"train\.optimizer: they differ in more"):
        run_together([first, other])
    # A number, without which there is a slot less.
    changes = {"report.path_points": 0, "train.momentum": 0.0}
    other = second._replace(config=config_of(seed=3, **changes))
    with pytest.raises(ValueError, match=r"because of config\.train\.momentum: "):
        run_together([first, other], devices=one())
    photos = first._replace(config=config_of(**{"data.name": "imagenet2012"}))
    with pytest.raises(ValueError, match="is decoded on its way"):
        run_together([photos, photos])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="replicas are trained by one process"):
        run_together([first, second])


def test_seeds_of_one_setting_go_together(tmp_path, monkeypatch):
    def member(seed, **changes):
        config = config_of(seed=seed, **changes)
        return Member(f"{seed}{changes}", config, tmp_path / f"{len(changes)}-{seed}")

    found = [member(s, **c) for s in range(3) for c in ({}, {"method.name": "set"})]
    names = [programs_of(member.config) for member in found]
    assert grouped(names, 8) == [[0, 2, 4], [1, 3, 5]]
    assert grouped(names, 2) == [[0, 2], [1, 3], [4], [5]]
    assert grouped(names, 1) == [[i] for i in range(6)]
    new, large = Checked(5, 100), Checked(5, 2**20 + 1)
    in_turn = turns.in_turn
    assert in_turn(found, [new] * 6, None) == [[0, 2, 4], [1, 3, 5]]
    assert in_turn(found, [large] * 6, None) == [[i] for i in range(6)]
    assert in_turn(found, [large] * 6, 3) == [[0, 2, 4], [1, 3, 5]]
    # Each kind by its own size, whatever else is there and is finished.
    assert in_turn(found, [new, large] * 3, None) == [[0, 2, 4], [1], [3], [5]]
    assert in_turn(found, [new, None] * 3, None) == [[0, 2, 4], [1], [3], [5]]
    assert in_turn(found, [None, large] * 3, None) == [[i] for i in range(6)]
    done = [None, new, new, new, new, new]
    assert in_turn(found, done, None) == [[2, 4], [1, 3, 5]]
    # One that is begun keeps the width of its program.
    (found[2].path / "checkpoints/5").mkdir(parents=True)
    assert in_turn(found, done, None) == [[0, 2, 4], [1, 3, 5]]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert in_turn(found, [new] * 6, 3) == [[i] for i in range(6)]
    # Nor does one process take over what another's part of the data was built for.
    assert programs_of(found[0].config) is None


def test_numbers_that_leave_the_program_go_together(tmp_path, monkeypatch):
    """Without momentum there is a slot less."""
    grid = "sparsity=0.5,0.8 train.momentum=0.0,0.5 seed=0,1"
    source = f"{ROOT}/configs/digits.py:{ARGUMENT}"
    found = members(source, parse_grid(grid), tmp_path)
    plain, kept = [0, 1, 4, 5], [2, 3, 6, 7]
    (found[2].path / "checkpoints/5").mkdir(parents=True)
    new = Checked(5, 100)
    some = [None if i in (0, 1, 3, 6) else new for i in range(8)]

    def in_turn(checked, replicas=None):
        return turns.in_turn(found, checked, replicas, one())

    assert in_turn(some) == [plain[2:], kept]
    assert in_turn([None] * 8) == in_turn(some, 1) == [[i] for i in range(8)]
    # As large as they are when built, the finished ones too.
    monkeypatch.setattr(turns, "_SMALL", 100)
    assert in_turn(some) == [[i] for i in range(8)]


@pytest.mark.slow
def test_members_that_begin_alike_wait_for_the_first(tmp_path):
    """What differs after phase 1 alone branches, and those that do go together."""
    source = f"{ROOT}/configs/digits.py:{ARGUMENT}"
    grid = "seed=0,1 sup.lr_max=0.02,0.03 method.sparsity=0.5,0.6"
    found = members(source, parse_grid(grid), tmp_path)
    turned = turns.in_turn(found, [Checked(5, 100)] * 8, None, one())
    assert turned == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_a_sweep_hands_seeds_over_together(tmp_path, monkeypatch, capsys):
    seen = []

    def build(config):
        state = SimpleNamespace(train=SimpleNamespace(params={}))
        return SimpleNamespace(
            inputs=SimpleNamespace(close=lambda: None),
            plan=SimpleNamespace(epoch_steps=5),
            check_files=lambda: None,
            like=lambda step: state,
        )

    def fails(members, *, devices=None):
        seen.append([member.name for member in members])
        return {members[1].name: ValueError("the loss is\nnan")}

    monkeypatch.setattr(sweeping, "builder", lambda devices: build)
    monkeypatch.setattr(sweeping, "run_together", fails)
    found = members(f"{ROOT}/configs/digits.py", parse_grid("seed=0..3"), tmp_path)
    failed = sweeping.run_members(found, replicas=2)
    assert seen == [["seed=0", "seed=1"], ["seed=2", "seed=3"]]
    assert failed == dict.fromkeys(["seed=1", "seed=3"], "the loss is nan")
    told = capsys.readouterr()
    assert "1, 2 of 4: seed=0, seed=1" in told.out
    assert "seed=3 failed: the loss is nan" in told.err
    words = [f"--config={ROOT}/configs/digits.py", f"--out={tmp_path}", "--grid=seed=0"]
    with pytest.raises(SystemExit, match="--replicas must be"):
        sweeping.main([*words, "--replicas=0"])
