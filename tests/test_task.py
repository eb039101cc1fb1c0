"""Any task through a whole run: phase 1, tickets, superposition, kill, resume.

Four libraries, a network written by hand, a recurrent one that carries its state from
batch to batch, and a task of two functions.
"""

import ast
import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from sup_tickets import training
from sup_tickets.data.resident import Weighted
from sup_tickets.masks import layer_table
from sup_tickets.methods import make_method
from sup_tickets.superposition import superposition
from sup_tickets.tickets import TicketPlan
from sup_tickets.training.checkpoint import Checkpoints
from sup_tickets.training.classification import PureNetwork, image_classification
from sup_tickets.training.evaluation import evaluate, predict, reestimate
from sup_tickets.training.experiment import Experiment, Stage
from sup_tickets.training.libraries.linen import linen_network
from sup_tickets.training.libraries.named import Named
from sup_tickets.training.libraries.nnx import nnx_network
from sup_tickets.training.loop import TrainingDiverged, TrainingStopped, train
from sup_tickets.training.network_files import load_sparse, save_sparse
from sup_tickets.training.optimizers import make_optimizer
from sup_tickets.training.plan import make_plan
from sup_tickets.training.state import network_of
from sup_tickets.training.steps import (
    Spec,
    compile_steps,
    init_state,
    topology_step,
    train_step,
)
from sup_tickets.training.task import Carried, Carry, Task, weighted_means
from sup_tickets.trees import named_leaves
from tests.test_checkpoint import Saver, bits

SPARSITY, TICKETS = 0.5, TicketPlan(phase1_steps=5, cycle_steps=2, cycles=2)
ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
EXAMPLE = jnp.zeros((1, 6))


# --- Tasks ----------------------------------------------------------------------------


class Batch(NamedTuple):
    inputs: np.ndarray
    labels: np.ndarray


def images_of(step):
    rng = np.random.default_rng(step)
    images = rng.normal(size=(8, 6)).astype(np.float32)
    return Batch(images, (images.sum(1) > 0).astype(np.int32))


def splits():
    return [
        Weighted(*images_of(100 + i), np.float32([1] * 7 + [1 - i])) for i in (0, 1)
    ]


def prepare(batch, key):
    noise = 0.01 * jax.random.normal(key, batch.inputs.shape)
    return batch.inputs + noise, batch.labels


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x, *, train):
        x = linen.Dense(8, name="hidden")(x)
        x = linen.BatchNorm(use_running_average=not train, name="norm")(x)
        x = linen.Dropout(0.1, deterministic=not train)(jnp.tanh(x))
        return linen.Dense(2, name="head")(x)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(6, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(jnp.tanh(self.norm(self.hidden(x)))))


def of_linen():
    return linen_network(LinenNet(), EXAMPLE)


def of_nnx():
    return nnx_network(NnxNet)


def of_haiku():
    hk = pytest.importorskip("haiku")
    from sup_tickets.training.libraries.haiku import haiku_network

    def forward(x, is_training):
        x = hk.Linear(8, name="hidden")(x)
        x = hk.BatchNorm(True, True, 0.9, name="norm")(x, is_training)
        return hk.Linear(2, name="head")(jnp.tanh(x))

    return haiku_network(hk.transform_with_state(forward), EXAMPLE)


def of_equinox():
    eqx = pytest.importorskip("equinox")
    from sup_tickets.training.libraries.equinox import AXIS, equinox_network

    class Net(eqx.Module):
        hidden: eqx.nn.Linear
        norm: eqx.nn.BatchNorm
        dropout: eqx.nn.Dropout
        head: eqx.nn.Linear

        def __init__(self, key):
            keys = jax.random.split(key)
            self.hidden = eqx.nn.Linear(6, 8, key=keys[0])
            self.norm = eqx.nn.BatchNorm(8, AXIS, mode="batch", momentum=0.9)
            self.dropout = eqx.nn.Dropout(0.1)
            self.head = eqx.nn.Linear(8, 2, key=keys[1])

        def __call__(self, x, state, *, key):
            x, state = self.norm(self.hidden(x), state)
            return self.head(self.dropout(jnp.tanh(x), key=key)), state

    return equinox_network(lambda key: eqx.nn.make_with_state(Net)(key=key))


def by_hand():
    def init(key):
        keys = jax.random.split(key)
        return {
            "hidden": {"kernel": jax.random.normal(keys[0], (6, 8))},
            "head": {"kernel": jax.random.normal(keys[1], (8, 2))},
        }, {}

    def apply(params, model_state, inputs, train, key, step):
        hidden = jnp.tanh(inputs @ params["hidden"]["kernel"])
        return hidden @ params["head"]["kernel"], model_state

    return PureNetwork(init, apply)


NETWORKS = {f.__name__: f for f in (of_linen, of_nnx, of_haiku, of_equinox, by_hand)}


def two_functions():
    """A regression, and what is not an image at all."""

    def init(key):
        return {"kernel": jax.random.normal(key, (6, 2))}, {}

    def loss(params, model_state, batch, key, step):
        wanted = batch.labels[:, None].astype(jnp.float32)
        error = batch.inputs @ params["kernel"] - wanted
        mean = jnp.square(error).mean()
        return mean, ({"error": jnp.abs(error).max()}, model_state)

    return Task(init=init, loss=loss)


HIDDEN, WORDS = 4, 5


def recurrent():
    """A small recurrent net that predicts the next word, and starts anew at step 4."""

    def init(key):
        keys = jax.random.split(key, 3)
        return {
            "table": {"embedding": jax.random.normal(keys[0], (WORDS, HIDDEN))},
            "cell": {"kernel": 0.3 * jax.random.normal(keys[1], (2 * HIDDEN, HIDDEN))},
            "head": {"kernel": jax.random.normal(keys[2], (HIDDEN, WORDS))},
        }, {}

    def nll(params, state, words):
        def one(hidden, word):
            seen = params["table"]["embedding"][word]
            both = jnp.concatenate([seen, hidden], axis=1)
            hidden = jnp.tanh(both @ params["cell"]["kernel"])
            return hidden, jax.nn.log_softmax(hidden @ params["head"]["kernel"])

        hidden, log_p = jax.lax.scan(one, state.carry, words[:, :-1].T)
        chosen = jnp.take_along_axis(log_p, words[:, 1:].T[..., None], axis=-1)
        return -chosen, state._replace(carry=hidden)

    def loss(params, state, words, key, step):
        losses, state = nll(params, state, words)
        return losses.mean(), ({}, state)

    def metrics(params, state, words, step):
        losses, state = nll(params, state, words)
        return {"loss": losses.sum(), "weight": jnp.float32(losses.size)}, state.carry

    def summarize(sums):
        mean = weighted_means(sums)["loss"]
        return {"loss": mean, "perplexity": float(np.exp(mean))}

    carry = Carry(
        start=lambda words: jnp.zeros((words.shape[0], HIDDEN)),
        restarts=lambda step: step == 4,
    )
    return Task(init=init, loss=loss, metrics=metrics, summarize=summarize, carry=carry)


def words_of(step):
    """Two rows of a text of which each batch has the next six words."""
    text = np.random.default_rng(0).integers(0, WORDS, (2, 200)).astype(np.int32)
    return jnp.asarray(text[:, 5 * step : 5 * step + 6])


@functools.cache
def task_of(name):
    if name in NETWORKS:
        return image_classification(NETWORKS[name](), prepare=prepare)
    return {"two_functions": two_functions, "recurrent": recurrent}[name]()


TASKS = [*NETWORKS, "two_functions", "recurrent"]
every_task = pytest.mark.parametrize("name", TASKS)
every_network = pytest.mark.parametrize("name", NETWORKS)


# --- Runs -----------------------------------------------------------------------------


@functools.cache
def experiment_of(name):
    method = make_method(
        "rigl",
        sparsity=SPARSITY,
        distribution="uniform",
        update_every=2,
        drop_fraction=0.5,
    )
    spec = Spec(task_of(name), method, make_optimizer("sgd"), lambda step: 0.1)
    validation = [words_of(30), words_of(31)] if name == "recurrent" else splits()
    return Experiment(
        plan=make_plan(method, TICKETS, epoch_steps=1),
        stages=(Stage(TICKETS.total_steps, compile_steps(spec, ONE)),),
        batches=words_of if name == "recurrent" else images_of,
        validation=lambda: validation,
        superposition=superposition("cia", sparsity=SPARSITY),
        explore_fraction=0.5,
    )


class Told:
    """Listens, and remembers."""

    def __init__(self):
        self.reports, self.metrics, self.networks, self.carries = {}, {}, {}, {}

    def reported(self, phase, steps, report):
        for i, step in enumerate(steps):
            self.reports[step] = {name: values[i] for name, values in report.items()}

    def validated(self, phase, step, metrics, network):
        self.metrics[step] = metrics

    def changed(self, kind, step, network, turnover):
        pass

    def collected(self, name, step, network):
        self.networks[name] = jax.device_get(network)


@functools.cache
def whole(name):
    experiment, told = experiment_of(name), Told()
    outcome = train(experiment, experiment.init(jax.random.key(0)), told)
    return jax.device_get(outcome), told


@every_task
def test_a_task_is_trained_and_superposed(name):
    outcome, told = whole(name)
    assert sorted(told.reports) == list(range(9))
    assert list(told.networks) == ["phase 1", "ticket 1", "ticket 2"]
    assert list(told.metrics) == [5, 7, 9]
    tables = [
        layer_table(network.masks)[-1]
        for network in (*told.networks.values(), outcome.superposed)
    ]
    assert {table.active for table in tables} == {tables[0].size // 2}
    masks = dict(named_leaves(outcome.superposed.masks))
    for leaf, weights in named_leaves(outcome.superposed.params):
        if leaf in masks:
            assert not np.asarray(weights)[~np.asarray(masks[leaf])].any()
    task = task_of(name)
    found = evaluate(task, outcome.superposed, experiment_of(name).validation())
    assert np.isfinite(task.rank(found))
    assert set(found) == set(told.metrics[9])


@every_task
def test_a_killed_run_goes_on_to_the_same_bits(name, tmp_path):
    outcome, _ = whole(name)
    experiment, checkpoints = experiment_of(name), Checkpoints(tmp_path)
    for stop in (3, 7):
        found = checkpoints.restore(experiment.like, ONE)
        state = experiment.init(jax.random.key(0)) if found is None else found.state
        with pytest.raises(TrainingStopped):
            train(experiment, state, Told(), Saver(checkpoints, stop_at=stop))
    found = checkpoints.restore(experiment.like, ONE)
    checkpoints.close()
    again = train(experiment, found.state, Told())
    chex.assert_trees_all_equal(bits(again), bits(outcome))


@every_task
def test_each_step_is_traced_once(name):
    chex.clear_trace_counter()
    spec = experiment_of(name).stages[0].steps.spec
    batches = experiment_of(name).batches

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state, batch):
        return train_step(spec, state, batch)

    state = init_state(spec, jax.random.key(0), None, batches(0))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for i in range(2):
        state, report = step(state, batches(i))
        assert np.isfinite(report["loss"])
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes


@every_network
def test_a_network_in_a_file_is_the_network(name, tmp_path):
    outcome, _ = whole(name)
    path = tmp_path / "network.safetensors"
    save_sparse(path, outcome.superposed, provenance={})
    loaded = load_sparse(path)
    chex.assert_trees_all_equal(loaded.params, outcome.superposed.params)
    chex.assert_trees_all_equal(loaded.model_state, outcome.superposed.model_state)
    found = [evaluate(task_of(name), n, splits()) for n in (loaded, outcome.superposed)]
    assert found[0] == found[1]


@every_network
def test_predictions_do_not_depend_on_the_key_or_the_batch(name):
    network, batch = whole(name)[0].superposed, splits()[0]
    found = predict(task_of(name), network, batch)
    chex.assert_shape(found.log_p, (8, 2))
    half = predict(task_of(name), network, jax.tree.map(lambda x: x[:4], batch))
    np.testing.assert_allclose(found.log_p[:4], half.log_p, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "by_hand"])
def test_statistics_estimated_anew_are_those_of_the_batch(name):
    """Whatever they were, and however the library keeps them."""
    network, task = whole(name)[0].superposed, task_of(name)
    task = dataclasses.replace(task, prepare=lambda batch, key: batch)
    batch = images_of(50)
    found = reestimate(task, network, [batch, batch], jax.random.key(0))
    assert jax.tree.structure(found) == jax.tree.structure(network)
    kernel, bias = (
        next(w for n, w in named_leaves(network.params) if n in names)
        for names in (
            ("hidden/kernel", "hidden/w", "hidden/weight"),
            ("hidden/bias", "hidden/b"),
        )
    )
    kernel = kernel.T if name == "of_equinox" else kernel
    hidden = batch.inputs @ kernel + bias
    wanted = [hidden.mean(0), hidden.var(0)]
    stored = [np.ravel(x) for n, x in named_leaves(found.model_state) if x.size == 8]
    for value in wanted:
        assert any(np.allclose(value, x, atol=1e-4) for x in stored), name
    # And they are what the network then is evaluated with.
    both = evaluate(task, found, splits())["nll"]
    assert both != evaluate(task, network, splits())["nll"]


def test_a_network_by_hand_has_nothing_to_estimate():
    network = whole("by_hand")[0].superposed
    task = task_of("by_hand")
    assert reestimate(task, network, [images_of(0)], jax.random.key(0)) is network
    stateful = network.replace(model_state={"mean": jnp.zeros(2)})
    with pytest.raises(ValueError, match="does not say how to estimate its model stat"):
        reestimate(task, stateful, [images_of(0)], jax.random.key(0))


# --- Two functions --------------------------------------------------------------------


def test_metrics_are_the_mean_loss_by_default():
    outcome, told = whole("two_functions")
    task, network = task_of("two_functions"), outcome.network
    assert set(told.reports[0]) == {"loss", "error"}
    losses = [
        float(task.loss(network.params, {}, batch, jax.random.key(0), 9)[0])
        for batch in splits()
    ]
    found = told.metrics[9]
    np.testing.assert_allclose(found["loss"], np.mean(losses), rtol=1e-6)
    assert set(found) == {"loss", "error"}
    assert task.rank(found) == -found["loss"]
    assert task.leading({"loss": 0.123456}) == "loss 0.1235"
    with pytest.raises(ValueError, match="no metric 'los'; did you mean 'loss'"):
        task.value_of(found, "los")
    with pytest.raises(ValueError, match="task has no predictions"):
        predict(task, network, splits()[0])


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"loss": 3}, TypeError, "loss of a task must be a function, got 3"),
        ({"prepare": None}, TypeError, "prepare of a task must be a function, got Non"),
    ],
)
def test_a_field_that_is_no_function_is_refused(fields, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(two_functions(), **fields)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda p: (p["kernel"], ({}, {})), r"the loss has shape \(6, 2\)"),
        (lambda p: (p["kernel"].sum(), ({"x": p["kernel"]}, {})), r"but x has shape"),
        (lambda p: (p["kernel"].sum(), ({}, {"a": 1.0})), "must give the model state"),
    ],
)
def test_a_loss_that_is_none_is_refused_when_traced(given, message):
    task = two_functions()
    broken = dataclasses.replace(
        task, loss=lambda params, *rest: given(params), metrics=task.metrics
    )
    spec = dataclasses.replace(experiment_of("two_functions").stages[0].steps.spec)
    spec = dataclasses.replace(spec, task=broken)
    state = init_state(spec, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(train_step, spec), state, images_of(0))


def test_a_network_that_breaks_is_told():
    experiment = experiment_of("two_functions")

    def poisoned(step):
        batch = images_of(step)
        return batch._replace(inputs=batch.inputs * (np.nan if step == 3 else 1))

    ours = dataclasses.replace(experiment, batches=poisoned)
    told = Told()
    with pytest.raises(TrainingDiverged, match="the loss is nan at step 3"):
        train(ours, ours.init(jax.random.key(0)), told)
    assert sorted(told.reports) == [0, 1, 2]


# --- Carried state --------------------------------------------------------------------


def rerun(batches):
    """The weights fixed: the hidden state after each of the batches, by NumPy."""
    task = task_of("recurrent")
    params, _ = task.init(jax.random.key(0))
    params = jax.device_get(params)
    hidden, found = np.zeros((2, HIDDEN), np.float32), []
    for words in batches:
        for word in np.asarray(words)[:, :-1].T:
            both = np.concatenate([params["table"]["embedding"][word], hidden], 1)
            hidden = np.tanh(both @ params["cell"]["kernel"])
        found.append(hidden)
    return params, found


def test_state_goes_from_batch_to_batch_and_starts_anew_where_told():
    params, hidden = rerun([words_of(i) for i in range(4)])
    _, (fresh,) = rerun([words_of(4)])
    spec = experiment_of("recurrent").stages[0].steps.spec
    frozen = dataclasses.replace(spec, learning_rate=lambda step: 0.0)
    step = jax.jit(functools.partial(train_step, frozen))
    state = init_state(spec, jax.random.key(0), None, words_of(0))
    assert not np.asarray(state.carry).any()
    dense = jax.tree.map(jnp.ones_like, state.method.masks)
    state = state.replace(params=params, method=state.method._replace(masks=dense))
    for i in range(5):
        state, _ = step(state, words_of(i))
        wanted = [*hidden, fresh][i]
        np.testing.assert_allclose(state.carry, wanted, atol=1e-5)


def test_an_update_that_consumes_its_batch_passes_the_state_through():
    spec = experiment_of("recurrent").stages[0].steps.spec
    state = init_state(spec, jax.random.key(0), None, words_of(0))
    trained, _ = jax.jit(functools.partial(train_step, spec))(state, words_of(0))
    updated, _ = jax.jit(functools.partial(topology_step, spec))(state, words_of(0))
    np.testing.assert_array_equal(trained.carry, updated.carry)
    assert int(updated.step) == 1


def test_what_is_carried_is_no_part_of_networks():
    outcome, told = whole("recurrent")
    assert outcome.network.model_state == outcome.superposed.model_state == {}
    assert outcome.state.train.carry.shape == (2, HIDDEN)
    assert network_of(outcome.state.train).model_state == {}
    found = told.metrics[9]
    np.testing.assert_allclose(found["perplexity"], np.exp(found["loss"]), rtol=1e-6)


def test_evaluation_carries_over_its_own_batches():
    task, network = task_of("recurrent"), whole("recurrent")[0].network
    both = evaluate(task, network, [words_of(30), words_of(31)])
    state, total = task.carry.start(words_of(30)), 0.0
    for i in (30, 31):
        params = jax.device_put(network.params)
        sums, state = task.metrics(params, Carried({}, state), words_of(i), 0)
        total += float(sums["loss"])
    np.testing.assert_allclose(both["loss"], total / 20, rtol=1e-5)
    alone = evaluate(task, network, [words_of(31)])
    apart = evaluate(task, network, [words_of(30)])
    assert both["loss"] != (alone["loss"] + apart["loss"]) / 2


def test_parts_of_a_batch_cannot_share_what_is_carried():
    spec = experiment_of("recurrent").stages[0].steps.spec
    with pytest.raises(ValueError, match="accumulate=2 cuts batches into parts, but"):
        dataclasses.replace(spec, accumulate=2)
    with pytest.raises(ValueError, match="init needs a batch"):
        init_state(spec, jax.random.key(0))


# --- Stages ---------------------------------------------------------------------------


def test_stages_follow_each_other():
    """The second has half of the first's head, and another loss."""
    experiment = experiment_of("two_functions")
    first = experiment.stages[0].steps
    spec = dataclasses.replace(
        first.spec, method=make_method("static", sparsity=0.5, distribution="uniform")
    )

    def init(key):
        params, state = two_functions().init(key)
        return {"kernel": params["kernel"], "extra": jnp.ones(3)}, state

    def loss(params, model_state, batch, key, step):
        value, told = two_functions().loss(params, model_state, batch, key, step)
        return value + jnp.square(params["extra"]).sum(), told

    wide = dataclasses.replace(spec, task=Task(init=init, loss=loss))

    def without_extra(tree):
        if isinstance(tree, dict):
            return {n: without_extra(t) for n, t in tree.items() if n != "extra"}
        return tree

    def then(state):
        return jax.tree.map(
            without_extra, state, is_leaf=lambda node: isinstance(node, dict)
        )

    ours = dataclasses.replace(
        experiment,
        plan=make_plan(spec.method, TICKETS, epoch_steps=1),
        stages=(
            Stage(3, compile_steps(wide, ONE), then),
            Stage(9, compile_steps(spec, ONE)),
        ),
        keep_steps=(0, 2, 4),
    )
    kept = {}

    class Keeps(Told):
        def kept(self, step, network):
            kept[step] = sorted(network.params)

    told = Keeps()
    outcome = train(ours, ours.init(jax.random.key(0)), told)
    assert kept == {step: ["kernel"] for step in (0, 2, 4)}
    assert told.reports[0]["loss"] > told.reports[3]["loss"] + 1
    assert sorted(outcome.network.params) == ["kernel"]
    assert sorted(ours.like(2).train.params) == ["extra", "kernel"]
    assert sorted(ours.like(3).train.params) == ["kernel"]
    # A run that starts in the second stage never has what only the first has.
    start = first.begin(jax.random.key(0))._replace(step=3)
    assert sorted(ours.init(jax.random.key(1), start).train.params) == ["kernel"]
    early = ours.init(jax.random.key(1), start._replace(step=1)).train.params
    assert sorted(early) == ["extra", "kernel"]
    np.testing.assert_array_equal(early["extra"], 1)


@pytest.mark.parametrize("ends", [(), (3,), (9, 9), (5, 3, 9), (0, 9), (3, 10)])
def test_stages_must_end_in_order_with_the_plan(ends):
    experiment = experiment_of("two_functions")
    steps = experiment.stages[0].steps
    with pytest.raises(ValueError, match=r"stages must end .* the last at step 9, got"):
        dataclasses.replace(experiment, stages=tuple(Stage(e, steps) for e in ends))


# --- Names ----------------------------------------------------------------------------


def test_training_knows_no_model_library_and_no_data():
    """But for the modules of the libraries, each of which needs its own alone."""
    folder = Path(training.__file__).parent
    known = {"flax.linen", "flax.nnx", "haiku", "equinox", "sup_tickets.models"}
    for path in folder.glob("*.py"):
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                found |= {str(node.module), *names}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        assert not found & known, path.name
        allowed = "mesh.py" if any("sup_tickets.data" in n for n in found) else ""
        assert not allowed or path.name == allowed


def test_trees_by_name_and_back():
    tree = (jnp.zeros(2), [{"a": jnp.ones(1)}, jnp.ones(3)])
    named = Named(tree)
    flat = named.to_dict(tree)
    assert sorted(flat) == ["0", "1"] and sorted(flat["1"]) == ["0", "1"]
    chex.assert_trees_all_equal(named.from_dict(flat), tree)
    with pytest.raises(ValueError, match="names of their own"):
        Named({"a/b": 1.0, "a": {"b": 2.0}})


@every_network
def test_parameters_are_nested_dicts_of_arrays(name):
    params, state = NETWORKS[name]().init(jax.random.key(0))
    for tree in (params, state):
        for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
            assert all(isinstance(k, jax.tree_util.DictKey) for k in path)
