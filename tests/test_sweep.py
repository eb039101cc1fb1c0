import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import sweep as sweeping
from experiments.config.reading import read_source
from experiments.grid import check_names, combinations, parse_grid
from experiments.lottery import find_tickets
from experiments.runs import branch as branches
from experiments.runs.stopping import Stopped
from experiments.study import read_study, run_study
from experiments.sweep import main, members, sweep
from tests.fabricated import write_run

ROOT = Path(__file__).parent.parent
DIGITS = str(ROOT / "configs/digits.py")


# --- The grid -------------------------------------------------------------------------


def test_a_grid_is_all_combinations():
    grid = parse_grid("method=set,rigl  sparsity=0.8,0.95 seed=-1..1,7")
    assert grid == {
        "method": ["set", "rigl"],
        "sparsity": ["0.8", "0.95"],
        "seed": ["-1", "0", "1", "7"],
    }
    names = combinations(grid)
    assert len(names) == len(set(names)) == 16
    assert names[0] == "method=set,sparsity=0.8,seed=-1"
    assert names[-1] == "method=rigl,sparsity=0.95,seed=7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--grid is empty"),
        ("seed", "has 'seed'; it must look like seed=0..4"),
        ("seed=", "has 'seed='; it must look like"),
        ("seed=0 seed=1", "has 'seed' twice"),
        ("seed=0..2,1", "has a value twice in 'seed=0..2,1'"),
        ("seed=0,,1", "has '' in 'seed=0,,1', which is no value"),
        ("seed=4..0", "has '4..0', which must go upwards"),
        ("seed=0..x", "has '0..x' in 'seed=0..x', which is no value"),
        ("seed=../..", "has '../..' in 'seed=../..', which is no value"),
        ("seed=0..9999 train.epochs=1..2", "has 20000 combinations, more than"),
    ],
)
def test_a_grid_that_is_wrong(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_grid(text)


def test_names_are_checked():
    fields = ["method.name", "seed", "train.epochs"]
    check_names({"method": 0, "seed": 0, "train.epochs": 0}, fields)
    with pytest.raises(ValueError, match="unknown name 'metod'; did you mean 'method'"):
        check_names({"metod": 0}, fields)
    with pytest.raises(ValueError, match=r"'epochs' and 'train.epochs', one field"):
        check_names({"train.epochs": 0, "epochs": 0}, fields)


def test_members_have_their_values(tmp_path):
    grid = parse_grid("model=mlp,conv sup=true,false sup.lr_max=0.05")
    found = members(f"{DIGITS}:sparsity=0.5", grid, tmp_path)
    assert [member.name for member in found][1] == "model=mlp,sup=false,sup.lr_max=0.05"
    config = found[1].config
    assert (config.model.name, config.sup.enabled) == ("mlp", False)
    assert (config.sup.lr_max, config.method.sparsity) == (0.05, 0.5)
    assert found[1].path == tmp_path / found[1].name
    assert tuple(found[3].config.model.options.features) == (16, 16, 32, 32)


def test_a_wrong_value_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"seed=1,sparsity=1.5: config.method.spars"):
        members(DIGITS, parse_grid("seed=1 sparsity=1.5"), tmp_path)
    with pytest.raises(ValueError, match="seed=x: seed must be of type int, got 'x'"):
        members(DIGITS, parse_grid("seed=x"), tmp_path)


def test_a_grid_has_lists_paths_and_quotes(tmp_path):
    one, other = (f"runs/a=1,seed={i}/x.st" for i in range(2))
    grid = parse_grid(f"train.drop_epochs=(1,2),3 masks='{one}',\"{other}\",none")
    assert grid == {"train.drop_epochs": ["(1,2)", "3"], "masks": [one, other, "none"]}
    found = members(DIGITS, grid, tmp_path)
    assert len({member.path for member in found}) == 6
    assert all(member.path.parent == tmp_path for member in found)
    assert found[0].name == "train.drop_epochs=(1,2),masks=runs%2Fa=1,seed=0%2Fx.st"
    config = found[1].config
    assert (config.masks, config.train.drop_epochs) == (other, (1, 2))
    assert [m.config.method.name for m in found[:3]] == ["static", "static", "rigl"]


def test_a_sweep_takes_overrides(tmp_path, fake, capsys):
    words = [f"--config={DIGITS}:model=mlp", f"--out={tmp_path}", "--grid=seed=0,2"]
    main([*words, "--config.train.epochs=50", "--noconfig.sup.enabled", "--dry_run"])
    assert "2 runs, 0 of them finished" in capsys.readouterr().out
    source = read_source(f"{DIGITS}:model=mlp", [("train.epochs", "50")])
    for member in members(source, parse_grid("seed=0,2 sup=false"), tmp_path):
        config = member.config
        assert (config.model.name, config.train.epochs) == ("mlp", 50)
        assert not config.sup.enabled


def test_files_without_an_argument_can_be_swept(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("from configs import common\nget_config = common.default\n")
    found = members(str(file), parse_grid("seed=3,4 mask=snip"), tmp_path)
    assert [member.config.seed for member in found] == [3, 4]
    assert found[0].config.method.name == "static"


# --- The runs -------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch):
    """Runs that are fabricated; those with seed 1 fail."""
    calls = []

    def run(config, workdir, *, devices=None):
        calls.append(Path(workdir).name)
        if (Path(workdir) / "report/summary.md").exists():
            return
        if config.seed == 1:
            raise ValueError("training diverged:\nthe loss is nan")
        plain = config.to_dict()
        write_run(Path(workdir), plain, accuracy=0.9 + config.seed / 100, full=False)
        (Path(workdir) / "report").mkdir()
        (Path(workdir) / "report/summary.md").write_text("done")

    def build(config, *, devices=None):
        if config.method.name == "gmp":
            raise ValueError("config.method: it prunes for too long")
        nothing = SimpleNamespace(close=lambda: None)
        plan = SimpleNamespace(epoch_steps=20)
        state = SimpleNamespace(train=SimpleNamespace(params={}))
        return SimpleNamespace(
            inputs=nothing,
            plan=plan,
            check_files=lambda: None,
            like=lambda step: state,
        )

    def together(members, *, devices=None):
        failed = {}
        for member in filter(None, members):
            try:
                sweeping.run.run(member.config, member.path, devices=devices)
            except ValueError as error:
                failed[member.name] = error
        return failed

    monkeypatch.setattr(sweeping.run, "run", run)
    monkeypatch.setattr(sweeping, "builder", lambda devices: build)
    monkeypatch.setattr(sweeping, "run_together", together)
    return calls


def test_a_sweep_runs_all_and_reports(tmp_path, fake, capsys):
    out = tmp_path / "sweep"
    main([f"--config={DIGITS}", f"--out={out}", "--grid=method=set,rigl seed=0,2"])
    names = [f"method={m},seed={s}" for m in ("set", "rigl") for s in (0, 2)]
    assert fake == names
    assert {path.name for path in out.iterdir()} == {*names, "report"}
    text = (out / "report/report.md").read_text()
    assert "4 runs in 2 settings" in text
    assert "91.00 ± 1.41" in text
    assert "report/index.html" in capsys.readouterr().out


def check_is_there(path, step):
    if not (path / str(step)).is_dir():
        raise FileNotFoundError(path)


def test_members_that_begin_alike_share_their_phase_1(tmp_path, fake, monkeypatch):
    run, sources = sweeping.run.run, {}
    monkeypatch.setattr(branches, "check_checkpoint", check_is_there)

    def trained(config, workdir, *, devices=None):
        sources[workdir.name] = config.branch_from
        if config.sup.explore_fraction != 0.2:  # one keeps nothing
            (workdir / "checkpoints" / str(20 * 81)).mkdir(parents=True)
        run(config, workdir, devices=devices)

    monkeypatch.setattr(sweeping.run, "run", trained)
    grid = "--grid=seed=0,2 sup.explore_fraction=0.2,0.1,0"
    main([f"--config={DIGITS}", f"--out={tmp_path}", grid, "--replicas=1"])
    name = "seed={},sup.explore_fraction={}".format
    for seed in (0, 2):
        first = str(tmp_path / name(seed, "0.1"))
        found = [sources[name(seed, share)] for share in ("0.2", "0.1", "0")]
        assert found == [None, None, first]


def test_a_sweep_goes_on_after_a_failure(tmp_path, fake, capsys):
    words = [f"--config={DIGITS}", f"--out={tmp_path}", "--grid=seed=0..2"]
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 1
    assert fake == ["seed=0", "seed=1", "seed=2"]
    errors = capsys.readouterr().err
    assert "1 failed:\n  seed=1: training diverged: the loss is nan\n" in errors
    assert "2 runs in 1 setting" in (tmp_path / "report/report.md").read_text()


def test_finished_runs_are_said_to_be_and_left(tmp_path, fake, capsys):
    sweep(DIGITS, "seed=0", tmp_path)
    before = (tmp_path / "seed=0/results.json").stat().st_mtime_ns
    capsys.readouterr()
    sweep(DIGITS, "seed=0,2", tmp_path)
    out = capsys.readouterr().out
    assert "seed=0: finished" in out and "seed=2: to do" in out
    assert (tmp_path / "seed=0/results.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"seed=0: .* holds another run: .*epochs"):
        sweep(f"{DIGITS}:epochs=50", "seed=0", tmp_path)


def test_everything_is_checked_before_the_first_run(tmp_path, fake):
    words = [f"--config={DIGITS}", f"--out={tmp_path}", "--grid=method=set,gmp"]
    with pytest.raises(SystemExit, match=r"error: method=gmp: config.method: it prun"):
        main(words)
    assert fake == []
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_run_is_none_for_a_sweep(tmp_path, fake):
    """Its report would be written over."""
    config = f"{DIGITS}:model=mlp"
    write_run(tmp_path / "run", read_source(config).make().to_dict(), full=False)
    with pytest.raises(ValueError, match=r"run is the folder of a single run"):
        sweep(config, "seed=0", tmp_path / "run")
    with pytest.raises(ValueError, match=r"run is the folder of a single run"):
        run_study(read_study("claim"), tmp_path / "run")
    with pytest.raises(ValueError, match=r"run is the folder of a single run"):
        find_tickets(read_source(f"{config},sup=false").make(), tmp_path / "run")
    assert not fake


def test_only_a_report_of_ours_is_replaced(tmp_path, fake):
    (tmp_path / "out/report").mkdir(parents=True)
    words = [f"--config={DIGITS}", f"--out={tmp_path / 'out'}", "--grid=seed=0"]
    for name in ("index.html", "report.md", "results.csv", "nll_a_b.png"):
        mine = tmp_path / "out/report" / name
        mine.write_text("mine")
        with pytest.raises(SystemExit, match=rf"{name} is in the way"):
            main(words)
        assert mine.read_text() == "mine" and fake == []
        mine.unlink()
    (tmp_path / "out/report/notes.md").write_text("mine")
    main(words)
    main(words)  # its own
    assert (tmp_path / "out/report/notes.md").read_text() == "mine"


def test_a_dry_run_only_prints(tmp_path, fake, capsys):
    main([f"--config={DIGITS}", f"--out={tmp_path}", "--grid=seed=0..3", "--dry_run"])
    out = capsys.readouterr().out
    assert out.count(": to do") == 4 and "4 runs, 0 of them finished" in out
    assert fake == [] and list(tmp_path.iterdir()) == []


def test_a_signal_ends_the_sweep(tmp_path, fake, monkeypatch, capsys):
    def stops(config, workdir, *, devices=None):
        fake.append(Path(workdir).name)
        raise Stopped("stopped, all saved", 15)

    monkeypatch.setattr(sweeping.run, "run", stops)
    with pytest.raises(SystemExit) as caught:
        main([f"--config={DIGITS}", f"--out={tmp_path}", "--grid=seed=0..3"])
    assert caught.value.code == 143
    assert fake == ["seed=0"]
    assert "stopped, all saved" in capsys.readouterr().err


def test_wrong_words_end_in_one_line(tmp_path):
    for words, message in [
        (["--config=nowhere.py", "--grid=seed=0"], "error: .*no file 'nowhere.py'"),
        ([f"--config={DIGITS}", "--grid=sed=0"], "error: .*did you mean 'seed'"),
    ]:
        with pytest.raises(SystemExit, match=message):
            main([*words, f"--out={tmp_path}"])
