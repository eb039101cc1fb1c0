"""What the README shows runs as it stands."""

import re
from pathlib import Path

import chex
import jax

ROOT = Path(__file__).parent.parent


def test_the_examples_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 7
    space = {}
    with jax.numpy_dtype_promotion("standard"):
        for block in blocks:
            exec(compile(block, "README.md", "exec"), space)
    st, masks = space["st"], space["masks"]
    assert capsys.readouterr().out.startswith("237 2368")
    assert int(st.count(masks)) == 237
    params = space["params"]
    chex.assert_trees_all_equal(space["network"].params, params)
    chex.assert_trees_all_equal(st.apply_masks(masks, params), params)


def test_the_commands_are_those_of_the_makefile():
    makefile, readme = ((ROOT / f).read_text() for f in ("Makefile", "README.md"))
    pytest_line = re.search(r'-m pytest (-m "not slow".*)', makefile)[1]
    assert pytest_line in readme
    assert "-m experiments.main --config=configs/digits.py --workdir=" in makefile
    for target in ("run", "test"):
        assert f"make {target}" in readme and re.search(rf"^{target}:", makefile, re.M)
