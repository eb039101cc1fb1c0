"""Language models: networks, the task, and whole runs of them."""

import functools
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.text import get_config
from experiments import run as run_module
from experiments.build.experiment import build, validation_steps
from experiments.evaluate import evaluate as evaluate_again
from experiments.run import run
from experiments.runs.folder import RunFolder
from experiments.runs.ownership import check_same_text, is_finished
from experiments.runs.stopping import Stopped
from sup_tickets.data.sequences import Sequences, WeightedSequences
from sup_tickets.models import LANGUAGE_MODELS, make_model
from sup_tickets.training.evaluation import evaluate, predictions
from sup_tickets.training.language import language_modelling, perplexity
from sup_tickets.training.libraries.linen import kernel_uses, linen_language
from sup_tickets.training.state import Network
from sup_tickets.trees import named_leaves, sparse_leaves
from tests.test_experiments import assert_same_results, signalled

V, B, T = 11, 3, 4
SMALL = {
    "lstm": {"embedding": 5, "features": (5, 6)},
    "onlstm": {"embedding": 5, "features": (6,), "layer_options": {"chunk": 2}},
    "rhn": {"embedding": 5, "features": (6,), "layer_options": {"depth": 3}},
    "transformer": {"width": 8, "depth": 1, "heads": 2, "hidden": 12},
}
every_model = pytest.mark.parametrize("name", sorted(LANGUAGE_MODELS))


def small(name, **options):
    return make_model(name, of_text=True, classes=V, **{**SMALL[name], **options})


def tokens_of(seed, length=T):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, V, (B, length)), jnp.int32)


@functools.cache
def drawn(name, length=T):
    init = functools.partial(small(name).init, train=False)
    return jax.jit(init)(jax.random.key(0), tokens_of(0, length))


# --- Networks -------------------------------------------------------------------------


def test_every_model_is_tried():
    assert set(SMALL) == set(LANGUAGE_MODELS)


@every_model
def test_scores_and_dtypes(name):
    for dtype in (jnp.float32, jnp.bfloat16):
        model = small(name, dtype=dtype)
        init = functools.partial(model.init_with_output, train=False)
        (logits, carry), variables = jax.eval_shape(
            init, jax.random.key(0), tokens_of(0)
        )
        assert (logits.shape, logits.dtype) == ((B, T, V), jnp.float32)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
            np.dtype("float32")
        }
        like = jax.eval_shape(functools.partial(model.start, B))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), carry) == jax.tree.map(
            lambda x: (x.shape, x.dtype), like
        )


@every_model
def test_what_is_sparse_is_multiplied(name):
    params = drawn(name)["params"]
    sparse = {n for n, chosen in named_leaves(sparse_leaves(params)) if chosen}
    uses = kernel_uses(small(name), tokens_of(0)[:1])
    assert sparse == set(uses)
    looked_up = 0 if name != "transformer" else T  # a tied table decodes, too
    assert uses == {n: looked_up if n.startswith("embedding") else T for n in uses}


@every_model
def test_no_token_sees_what_comes_after(name):
    tokens = tokens_of(1)
    other = tokens.at[:, 2].set((tokens[:, 2] + 1) % V)
    apply = jax.jit(functools.partial(small(name).apply, train=False))
    one, two = (apply(drawn(name), t)[0] for t in (tokens, other))
    np.testing.assert_allclose(one[:, :2], two[:, :2], atol=1e-6)
    assert (np.abs(one[:, 2:] - two[:, 2:]).max((0, 2)) > 1e-4).all()


def test_an_lstm_by_numpy():
    variables = drawn("lstm")
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    tokens = np.asarray(tokens_of(1))
    x = params["embedding"]["embedding"][tokens]
    for name in ("layer1", "layer2"):
        layer = params[name]
        size = layer["hidden_kernel"].shape[0]
        cell, out, outs = np.zeros((B, size)), np.zeros((B, size)), []
        for t in range(T):
            gates = x[:, t] @ layer["input_kernel"] + layer["bias"]
            i, f, g, o = np.split(gates + out @ layer["hidden_kernel"], 4, axis=1)
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            out = sigmoid(o) * np.tanh(cell)
            outs.append(out)
        x = np.stack(outs, 1)
    wanted = x @ params["decoder"]["kernel"] + params["decoder"]["bias"]
    apply = jax.jit(functools.partial(small("lstm").apply, train=False))
    found, carry = apply(variables, tokens_of(1))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(carry[1][1], outs[-1], atol=1e-6)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_a_highway_by_numpy():
    variables = drawn("rhn")
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    layer, tokens = params["layer1"], np.asarray(tokens_of(1))
    x = params["embedding"]["embedding"][tokens]
    state, outs = np.zeros((B, 6)), []
    for t in range(T):
        for depth in (1, 2, 3):
            gates = state @ layer[f"highway_hidden_kernel{depth}"]
            gates = gates + layer[f"bias{depth}"]
            if depth == 1:
                gates = gates + x[:, t] @ layer["highway_input_kernel"]
            h, transform = np.tanh(gates[:, :6]), sigmoid(gates[:, 6:])
            state = h * transform + state * (1 - transform)
        outs.append(state)
    wanted = np.stack(outs, 1) @ params["decoder"]["kernel"]
    apply = jax.jit(functools.partial(small("rhn").apply, train=False))
    found, carry = apply(variables, tokens_of(1))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(carry[0], state, atol=1e-6)
    assert layer["bias2"].tolist() == [0.0] * 6 + [-2.0] * 6


def test_ordered_neurons_by_numpy():
    variables = drawn("onlstm")
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    layer, tokens = params["layer1"], np.asarray(tokens_of(1))

    def cumax(x):
        p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
        return np.repeat(np.cumsum(p, -1), 2, -1)

    x = params["embedding"]["embedding"][tokens]
    cell, out, outs = np.zeros((B, 6)), np.zeros((B, 6)), []
    for t in range(T):
        gates = x[:, t] @ layer["ordered_input_kernel"] + layer["bias"]
        gates = gates + out @ layer["ordered_hidden_kernel"]
        forget, enter = cumax(gates[:, :3]), 1 - cumax(gates[:, 3:6])
        i, f, g, o = np.split(gates[:, 6:], 4, axis=1)
        both = forget * enter
        keep = sigmoid(f) * both + (forget - both)
        add = sigmoid(i) * both + (enter - both)
        cell = keep * cell + add * np.tanh(g)
        out = sigmoid(o) * np.tanh(cell)
        outs.append(out)
    wanted = np.stack(outs, 1) @ params["decoder"]["kernel"]
    apply = jax.jit(functools.partial(small("onlstm").apply, train=False))
    found, carry = apply(variables, tokens_of(1))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(carry[0][0], cell, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in SMALL if n != "transformer"])
def test_a_state_that_is_carried_joins_two_windows(name):
    tokens = tokens_of(2, 2 * T)
    apply = jax.jit(functools.partial(small(name).apply, train=False))
    whole, after = apply(drawn(name), tokens)
    first, carry = apply(drawn(name), tokens[:, :T])
    second, last = apply(drawn(name), tokens[:, T:], carry)
    joined = np.concatenate([first, second], axis=1)
    np.testing.assert_allclose(joined, whole, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after, last)


DROPOUTS = {
    "lstm": (
        *("dropout", "dropout_between", "dropout_input", "dropout_words"),
        "dropout_weights",
    ),
    "onlstm": ("dropout_weights",),
    "rhn": ("dropout_weights",),
    "transformer": ("dropout",),
}


@pytest.mark.parametrize(
    ("name", "option"), [(n, o) for n in SMALL for o in DROPOUTS[n]]
)
def test_dropouts_are_of_training(name, option):
    model, variables = small(name, **{option: 0.5}), drawn(name)

    @functools.partial(jax.jit, static_argnums=0)
    def logits(train, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, tokens_of(1), train=train, rngs=rngs)[0]

    plain = small(name).apply(variables, tokens_of(1), train=False)[0]
    np.testing.assert_allclose(logits(False, 0), plain, atol=1e-6)
    one, two = logits(True, 0), logits(True, 1)
    assert np.abs(one - plain).max() > 1e-4 and np.abs(one - two).max() > 1e-4
    np.testing.assert_array_equal(one, logits(True, 0))


def test_variational_dropout_is_the_same_at_all_tokens():
    """Seen in the derivative of the logits by what is embedded."""
    for variational in (True, False):
        model = small(
            "lstm", dropout=0.5, features=(64,), variational=variational, embedding=5
        )
        variables = model.init(jax.random.key(0), tokens_of(0), train=False)
        zero = jax.tree.map(jnp.zeros_like, variables)
        kernel = jnp.ones((64, V)).at[:, 1:].set(0)
        bias = jnp.full((4 * 64,), 9.0)
        zero["params"]["decoder"]["kernel"] = kernel
        zero["params"]["layer1"]["bias"] = bias
        # All features of the layer are alike, so the sum says how many are left.
        logits, _ = model.apply(
            zero, tokens_of(1), train=True, rngs={"dropout": jax.random.key(3)}
        )
        left = np.asarray(logits[..., 0]) / np.asarray(logits[:1, :1, :1])[0, 0, 0]
        steady = left / left[:, :1]
        growth = steady[0]  # as the state saturates, the same for every row
        same = np.allclose(steady, growth[None], rtol=1e-4)
        assert same == variational


def test_words_are_dropped_as_a_whole():
    model = small("lstm", dropout_words=0.5, features=(5,))
    variables = model.init(jax.random.key(0), tokens_of(0), train=False)
    tokens = jnp.asarray([[1, 1, 2, 2]] * 3, jnp.int32)

    def embedded(seed):
        """Through a layer that passes on whether its input is 0."""
        kept = jax.tree.map(jnp.zeros_like, variables["params"])
        kept["embedding"]["embedding"] = jnp.ones((V, 5))
        kernel = jnp.zeros((5, 20)).at[0, 10:15].set(1.0)  # of the cell's gate
        kept["layer1"]["input_kernel"] = kernel
        kept["layer1"]["bias"] = jnp.zeros(20).at[5:10].set(-99.0)  # forgets
        kept["decoder"]["kernel"] = jnp.ones((5, V))
        return model.apply(
            {"params": kept}, tokens, train=True, rngs={"dropout": jax.random.key(seed)}
        )[0][..., 0]

    seen = [np.asarray(embedded(seed)) for seed in range(8)]
    for found in seen:
        np.testing.assert_allclose(found[:, 0], found[:, 1], rtol=1e-6)
        np.testing.assert_allclose(found, found[:1] + 0 * found, rtol=1e-6)
    values = {float(x) for found in seen for x in found[0]}
    assert len(values) == 2 and 0.0 in values  # gone, or twice as large


def test_bad_options_of_models_are_told():
    with pytest.raises(ValueError, match=r"'vgg16' is not one of texts, lstm, onls"):
        make_model("vgg16", of_text=True)
    with pytest.raises(ValueError, match=r"'lstm' is not one of images, conv, "):
        make_model("lstm")
    with pytest.raises(ValueError, match=r"unknown model 'ltsm'; did you mean 'lstm'"):
        make_model("ltsm", of_text=True)
    with pytest.raises(ValueError, match=r"tied=True needs .*, got 6 and 5"):
        jax.eval_shape(
            functools.partial(small("lstm", tied=True).init, train=False),
            jax.random.key(0),
            tokens_of(0),
        )
    with pytest.raises(ValueError, match=r"features must be a multiple of 4, got 6"):
        jax.eval_shape(
            functools.partial(
                small("onlstm", layer_options={"chunk": 4}).init, train=False
            ),
            jax.random.key(0),
            tokens_of(0),
        )
    with pytest.raises(ValueError, match=r"width must be a multiple of 3 .*, got 8"):
        jax.eval_shape(
            functools.partial(small("transformer", heads=3).init, train=False),
            jax.random.key(0),
            tokens_of(0),
        )


# --- The task -------------------------------------------------------------------------


@functools.cache
def task_of(name):
    return language_modelling(
        linen_language(small(name), length=T), prepare=lambda batch, key: batch
    )


def network_of(name):
    params = drawn(name)["params"]
    return Network(params, {}, jax.tree.map(lambda _: None, params))


def batches(count=3):
    tokens = np.asarray(tokens_of(5, count * T + 1))
    weights = np.ones((B, count * T), np.float32)
    weights[-1, -2:] = 0
    for i in range(0, count * T, T):
        cut = slice(i, i + T)
        labels = tokens[:, 1:][:, cut]
        yield WeightedSequences(tokens[:, cut], labels, weights[:, cut])


@every_model
def test_the_perplexity_is_that_of_all_tokens(name):
    found = evaluate(task_of(name), network_of(name), batches())
    tokens, total, count = np.asarray(tokens_of(5, 3 * T + 1)), 0.0, 0
    apply = jax.jit(functools.partial(small(name).apply, train=False))
    step = 3 * T if name != "transformer" else T
    for start in range(0, 3 * T, step):
        logits = np.asarray(
            apply(drawn(name), tokens[:, start : start + step])[0], np.float64
        )
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for b in range(B):
            for t in range(step):
                if b < B - 1 or start + t < 3 * T - 2:
                    total -= log_p[b, t, tokens[b, start + t + 1]]
                    count += 1
    assert found["examples"] == count == B * 3 * T - 2
    np.testing.assert_allclose(found["perplexity"], np.exp(total / count), rtol=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(found["nll"]))
    assert task_of(name).rank(found) == -found["perplexity"]
    seen = list(predictions(task_of(name), network_of(name), batches()))
    assert [p.log_p.shape for p in seen] == [(B, T, V)] * 3


def test_a_perplexity_beyond_numbers_is_infinite():
    assert perplexity(0.0) == 1 and perplexity(1e4) == np.inf


@every_model
def test_the_gradient_is_that_of_the_mean(name):
    task, params = task_of(name), drawn(name)["params"]
    tokens = tokens_of(5, T + 1)
    batch = Sequences(tokens[:, :-1], tokens[:, 1:])
    state = {}
    if task.carry is not None:
        from sup_tickets.training.task import Carried

        state = Carried({}, task.carry.start(batch))
    value, (report, after) = task.loss(params, state, batch, jax.random.key(0), 0)
    logits = small(name).apply({"params": params}, batch.tokens, train=False)[0]
    log_p = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_p, batch.labels[..., None], -1)
    np.testing.assert_allclose(value, -chosen.mean(), rtol=1e-6)
    assert report["loss"] == value
    assert jax.tree.structure(after) == jax.tree.structure(state)


# --- Runs -----------------------------------------------------------------------------

WORDS = "the cat sat on the mat , and the dog sat by the cat . it ran\n"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng = np.random.default_rng(0)
    words = WORDS.split(" ")
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(" ".join(rng.choice(words, 500)), encoding="utf-8")
    return path


def config_of(text, argument="", **changes):
    """Two epochs, then two tickets of one; 8 steps each."""
    config = get_config(
        f"data='text:{text}',data.validation_examples=60,data.batch_size=8,"
        "data.sequence=6,data.vocabulary=9,epochs=4,cycles=2,cycle_epochs=1,"
        "method.update_every_steps=3,report.path_points=0,train.check_every_steps=1,"
        f"train.learning_rate=1.0,{argument}"
    )
    if config.model.name == "lstm":
        config.model.options.embedding, config.model.options.features = 6, (6,)
    else:
        config.model.options.width, config.model.options.heads = 8, 2
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


def one():
    return jax.devices()[:1]


@pytest.mark.parametrize(
    "argument",
    [
        "sup=false,epochs=2,train.averaging=restart,train.averaging_patience=1,"
        "train.validate_every_epochs=0.25,method=set",
        pytest.param(
            "train.averaging=restart,train.averaging_patience=1,"
            "train.validate_every_epochs=0.25",
            marks=pytest.mark.slow,
        ),
        pytest.param("method=set,train.block_steps=2", marks=pytest.mark.slow),
        pytest.param("model=transformer", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("loose")
def test_a_run_that_was_killed_goes_on_bit_by_bit(
    text, argument, tmp_path, monkeypatch, capsys
):
    config = config_of(text, argument)
    if not config.sup.enabled:  # which is drawn by the slow ones
        monkeypatch.setattr(run_module, "write_report", lambda *_: None)
    run(config, tmp_path / "whole", devices=one())
    total = build(config, devices=one()).plan.total_steps
    at = total // 2 + 1
    signalled(monkeypatch, signal.SIGTERM, at)
    with pytest.raises(Stopped, match=rf"stopped after \d+ of {total} steps"):
        run(config, tmp_path / "broken", devices=one())
    run(config, tmp_path / "broken", devices=one())
    assert "going on after" in capsys.readouterr().out
    assert_same_results(tmp_path / "broken", tmp_path / "whole")
    rows = json.loads((tmp_path / "whole/results.json").read_text())["rows"]
    assert [row["network"] for row in rows] == (
        ["phase 1", "ticket 1", "ticket 2", "superposed ticket"]
        if config.sup.enabled
        else ["final"]
    )
    for row in rows:
        assert row["perplexity"] == pytest.approx(np.exp(row["nll"]))
    if config.sup.enabled:
        summary = (tmp_path / "whole/report/summary.md").read_text("utf-8")
        words = " ".join(summary.split())
        assert "| test perplexity | accuracy |" in words
        assert (
            "| the superposed ticket against | perplexity, lower is better |" in words
        )
    again = evaluate_again(tmp_path / "whole", devices=one())["final"][0]
    assert again["perplexity"] == rows[-1]["perplexity"]


@pytest.mark.slow
def test_eight_devices_compute_as_one(text, tmp_path):
    config = config_of(text, "sup=false,epochs=1,method=static,report.path_points=11")
    for name, devices in (("one", one()), ("eight", None)):
        run(config, tmp_path / name, devices=devices)
    found = [
        json.loads((tmp_path / name / "results.json").read_text("utf-8"))["rows"][0]
        for name in ("one", "eight")
    ]
    assert found[0]["active"] == found[1]["active"]
    assert found[0]["examples"] == found[1]["examples"]
    assert found[0]["perplexity"] == pytest.approx(found[1]["perplexity"], rel=1e-4)


def test_another_text_is_another_run(text, tmp_path):
    other = tmp_path / "book.txt"
    other.write_bytes(text.read_bytes())
    config, folder = config_of(other), tmp_path / "run"
    RunFolder(folder, config).close()
    RunFolder(folder, config).close()
    check_same_text(folder, config)
    other.write_text(text.read_text("utf-8").replace("cat", "hen"), encoding="utf-8")
    message = r"the contents of config.data.name \(text:.*book.txt\) are others"
    for act in (RunFolder, is_finished, check_same_text):
        with pytest.raises(ValueError, match=message):
            act(folder, config)
    other.unlink()  # a finished run needs it not
    RunFolder(folder, config).close()


def test_what_is_carried_begins_anew_with_each_epoch(text):
    ours = build(config_of(text), devices=one())
    restarts = ours.experiment.task.carry.restarts
    steps = ours.plan.epoch_steps
    assert [bool(restarts(s)) for s in (0, 1, steps - 1, steps, steps + 1)] == [
        *(True, False, False, True, False)
    ]
    assert ours.inputs.classes == 9
    masks = ours.like(0).train.method.masks
    assert {n for n, _ in named_leaves(masks)} == {
        *("embedding/embedding", "decoder/kernel"),
        *(f"layer1/{k}_kernel" for k in ("input", "hidden")),
    }


def test_validation_twice_an_epoch():
    assert [validation_steps(e, 9) for e in (0, 0.5, 1, 2, 0.001)] == [0, 4, 9, 18, 1]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data.batch_size=80", r"config.data: the text has .* fewer than one batch"),
        ("data.vocabulary=2", r"config.data: .* has no two different tokens"),
        ("data.unit=lines", r"config.data.unit must be one of .* got 'lines'"),
        ("data=text:none.txt", r"there is no text 'none.txt'"),
        ("model=vgg16", r"config.model: model 'vgg16' is not one of texts"),
        ("data.flip=false", r"config.data.flip=False would have no effect"),
        ("data.shrink=2", r"config.data.shrink=2 would have no effect"),
        ("mask=snip", r"config.mask.name='snip' with config.data.name=.* of images"),
        ("tost=soft", r"config.tost.parts='soft' with config.data.name="),
        ("method=static,mask.orthogonal=true", r"config.mask.orthogonal=True with"),
        ("train.accumulate=2", r"config.train: accumulate=2 cuts batches into parts"),
        ("train.averaging_patience=3", r"averaging_patience=3 would have no effect"),
        (
            "train.averaging=plain,data.validation_examples=0",
            r"config.train.averaging='plain' with .*validation_examples=0: it begins",
        ),
    ],
)
def test_wrong_values_are_refused_in_one_line(text, argument, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        build(config_of(text, argument), devices=one())
    assert "\n" not in str(caught.value)


def test_an_image_set_takes_no_network_of_texts():
    from tests.test_experiments import config_of as images

    config = images(**{"model.name": "lstm"})
    with pytest.raises(ValueError, match="model 'lstm' is not one of images"):
        build(config, devices=one())
    with pytest.raises(ValueError, match=r"config.data.unit='characters' would have"):
        build(images(**{"data.unit": "characters"}), devices=one())


@pytest.mark.slow
def test_labels_are_smoothed_and_masks_found_by_magnitude(text):
    config = config_of(
        text, "mask=magnitude,sup=true,tost=labels,train.averaging=plain"
    )
    ours = build(config, devices=one())
    state = ours.init().train
    state, report = ours.steps.train(state, ours.inputs.batches(0))
    masks = [np.asarray(m) for m in jax.tree.leaves(state.method.masks)]
    total = sum(m.size for m in masks)
    assert sum(int(m.sum()) for m in masks) == round(0.33 * total)
    assert float(report["loss"]) < np.log(9) + 1


def test_a_task_is_compiled_from_its_network():
    task = task_of("lstm")
    assert task.objective == "perplexity" and task.carry is not None
    assert task_of("transformer").carry is None
