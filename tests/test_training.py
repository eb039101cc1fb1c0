import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sup_tickets.data import resident
from sup_tickets.learning_rates import cheap_ticket_schedule, step_lr
from sup_tickets.masks import layer_table
from sup_tickets.methods import make_method
from sup_tickets.models import MLP, ConvNet, make_model
from sup_tickets.sparse_state import keep_sparse, masks_of
from sup_tickets.superposition import superposition
from sup_tickets.tickets import TicketPlan, ticket_budget
from sup_tickets.training.classification import image_classification
from sup_tickets.training.evaluation import evaluate, reestimate
from sup_tickets.training.experiment import Experiment, Stage
from sup_tickets.training.libraries.linen import linen_network
from sup_tickets.training.loop import TrainingDiverged, train
from sup_tickets.training.losses import cross_entropy, smoothed_cross_entropy
from sup_tickets.training.mesh import data_mesh, data_shardings
from sup_tickets.training.optimizers import make_optimizer
from sup_tickets.training.plan import describe, make_plan, ticket_plan
from sup_tickets.training.state import Network, RunState
from sup_tickets.training.steps import Spec, compile_steps
from sup_tickets.transforms import sparse_training
from sup_tickets.trees import named_leaves
from sup_tickets.update_times import scheduled
from tests import helpers

N, BATCH, SPARSITY = 20, 8, 0.75  # 3 steps an epoch, the last batch filled up
TICKETS = TicketPlan(phase1_steps=12, cycle_steps=4, cycles=2)

RATE = cheap_ticket_schedule(
    step_lr(0.1, milestones=[6, 9]),
    phase1_steps=12,
    cycle_steps=4,
    cycles=2,
    lr_min=0.001,
    lr_max=0.05,
)


OURS = superposition("cia", sparsity=SPARSITY)


class Recorder:
    """Listens, and keeps host copies."""

    def __init__(self):
        self.loss, self.events, self.networks, self.metrics = {}, [], {}, []
        self.turnovers = []

    def reported(self, phase, steps, report):
        self.loss |= dict(zip(steps, report["loss"].tolist(), strict=True))

    def validated(self, phase, step, metrics, network):
        self.metrics.append((step, metrics))

    def changed(self, kind, step, network, turnover):
        self.events.append((kind, step))
        self.turnovers.append(jax.device_get(turnover))

    def collected(self, name, step, network):
        self.networks[name] = jax.device_get(network)


def data():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(N, 4, 4, 1)).astype(np.float32)
    return images, (np.arange(N) % 10).astype(np.int32)


def prepare(batch, key):
    images, labels = resident.take(batch)
    return images + 0.01 * jax.random.normal(key, images.shape), labels


def model_of():
    return MLP(features=(16,), batch_norm=True)


def method_of(name):
    fixed = {} if name == "static" else {"update_every": 4, "drop_fraction": 0.5}
    return make_method(name, sparsity=SPARSITY, **fixed)


def task_of(model=None, **options):
    network = linen_network(model or model_of(), jnp.zeros((1, 4, 4, 1)))
    return image_classification(network, **{"prepare": prepare, **options})


TASK = task_of()


@functools.cache
def steps_of(name, devices=1, optimizer="sgd"):
    tx = make_optimizer(optimizer, weight_decay=5e-4)
    spec = Spec(TASK, method_of(name), tx, RATE)
    return compile_steps(spec, place_of(devices).replicated)


def place_of(devices=1):
    return data_shardings(data_mesh(jax.devices()[:devices]), batch_size=BATCH)


def batches_of(devices=1, seed=0):
    return resident.training_batches(
        data(), key=jax.random.key(seed), batch_size=BATCH, shardings=place_of(devices)
    )


def experiment_of(name, devices=1, *, steps=None, **changes):
    batches = resident.evaluation_batches(
        *data(), batch_size=BATCH, shardings=place_of(devices)
    )
    return Experiment(
        plan=make_plan(method_of(name), TICKETS, epoch_steps=3),
        stages=(Stage(TICKETS.total_steps, steps or steps_of(name, devices)),),
        **{
            "batches": batches_of(devices),
            "validation": lambda: batches,
            "explore_fraction": 0.5,
            "superposition": OURS,
            **changes,
        },
    )


def start_of(experiment, seed=0):
    return experiment.init(jax.random.key(seed))


def run(experiment, seed=0, recorder=None):
    """The outcome of a whole run, and what it told."""
    recorder = recorder or Recorder()
    return train(experiment, start_of(experiment, seed), recorder), recorder


@functools.cache
def finished(name, devices=1, seed=0):
    """A whole run, as host arrays."""
    outcome, recorder = run(experiment_of(name, devices), seed)
    return jax.device_get(outcome), recorder


def counts(masks):
    return [(row.name, row.active) for row in layer_table(masks)]


def assert_dead_are_zero(state):
    masks = dict(named_leaves(state.method.masks))
    assert masks
    for tree in (state.params, state.opt_state):
        for name, leaf in named_leaves(tree):
            for sparse, mask in masks.items():
                if name.endswith(sparse):
                    assert not np.asarray(leaf)[~np.asarray(mask)].any(), name


def assert_same_bits(a, b):
    chex.assert_trees_all_equal(data_of(a), data_of(b))


def data_of(tree):
    """The tree with random keys as numbers."""
    return jax.tree.map(
        lambda x: (
            jax.random.key_data(x)
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            else x
        ),
        tree,
    )


# --- Steps ----------------------------------------------------------------------------


@pytest.mark.usefixtures("loose")
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("rigl", "sgd"), ("rigl", "adamw"), ("set", "sgd"), ("snfs", "sgd")],
)
def test_every_step_leaves_dead_weights_and_moments_at_zero(name, optimizer):
    steps, batch = steps_of(name, 1, optimizer), batches_of()
    explores = (name, optimizer) == ("rigl", "sgd")  # a program less to compile
    state = steps.init(jax.random.key(0))
    before = counts(state.method.masks)
    changes = 0
    for t in range(7):
        old = jax.device_get(state.method.masks)
        if t in (2, 4):
            state, _ = steps.topology(state, batch(t))
        if t == 5 and explores:
            state, _ = steps.explore(state, batch(t), 0.5)
        assert_dead_are_zero(state)
        changes += any(
            (a != b).any()
            for a, b in zip(
                jax.tree.leaves(old), jax.tree.leaves(state.method.masks), strict=True
            )
        )
        state, report = steps.train(state, batch(t))
        assert_dead_are_zero(state)
        assert np.isfinite(report["loss"])
        now = counts(state.method.masks)
        assert now[-1] == before[-1]  # SNFS moves weights between layers
        assert name == "snfs" or now == before
    assert changes == 2 + explores
    # One program each, whatever the schedules and the masks are.
    compiled = [steps.train, steps.topology, steps.explore]
    assert [step._cache_size() for step in compiled] == [1, 1, int(explores)]


@pytest.mark.usefixtures("loose")
def test_the_update_of_rigl_consumes_a_step():
    steps, batch = steps_of("rigl", 1, "adamw"), batches_of()
    state, _ = steps.train(steps.init(jax.random.key(0)), batch(0))
    before = jax.device_get(state)
    state, _ = steps.topology(state, batch(1))
    assert int(state.step) == 2  # the learning rate goes on with it ...
    adam = optax.tree.get(state.opt_state, "count")
    assert int(adam) == int(optax.tree.get(before.opt_state, "count")) == 1
    assert_same_bits(state.model_state, before.model_state)
    old, new = before.params["dense1"]["kernel"], state.params["dense1"]["kernel"]
    kept = (
        before.method.masks["dense1"]["kernel"] & state.method.masks["dense1"]["kernel"]
    )
    np.testing.assert_array_equal(new, np.where(kept, old, 0))  # ... no weight moves
    assert_same_bits(state.params["bn1"], before.params["bn1"])


def test_the_update_of_set_leaves_the_step():
    steps, batch = steps_of("set"), batches_of()
    state, _ = steps.topology(steps.init(jax.random.key(0)), batch(0))
    assert int(state.step) == 0


@pytest.mark.usefixtures("loose")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rigl_trains_as_the_optax_wrapper_does(optimizer):
    """The step that an update replaces is one of time, and none of the optimizer."""
    key, batch, steps = jax.random.key(3), batches_of(), steps_of("rigl", 1, optimizer)
    init_key, method_key, step_key = jax.random.split(key, 3)
    params = model_of().init(init_key, jnp.zeros((1, 4, 4, 1)), train=False)["params"]
    tx = optax.chain(
        make_optimizer(optimizer, weight_decay=5e-4),
        optax.scale_by_learning_rate(RATE),
    )
    wrapped = sparse_training(tx, method_of("rigl"), key=method_key)
    wrapper_state = wrapped.init(params)
    params = keep_sparse(params, wrapper_state)

    def loss(params, rows, step):
        images, labels = prepare(rows, jax.random.fold_in(step_key, step))
        # The running statistics do not matter to a training step.
        logits, _ = model_of().apply(
            {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return cross_entropy(logits, labels).mean()

    @jax.jit
    def wrapped_step(params, wrapper_state, rows, step):
        gradients = jax.grad(loss)(params, rows, step)
        updates, wrapper_state = wrapped.update(gradients, wrapper_state, params)
        return optax.apply_updates(params, updates), wrapper_state

    state = steps.init(key)
    for t in range(11):
        step = steps.topology if t in (4, 8) else steps.train
        state, _ = step(state, batch(t))
        params, wrapper_state = wrapped_step(params, wrapper_state, batch(t), t)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, params
    )
    assert_same_bits(state.method.masks, masks_of(wrapper_state))


def test_label_smoothing_by_hand():
    scores, labels = jnp.array([[2.0, 0.0, 1.0]]), jnp.array([0])
    log_p = np.asarray(scores[0]) - np.log(np.exp(np.asarray(scores[0])).sum())
    expected = -(np.array([0.8, 0.1, 0.1]) @ log_p)
    found = smoothed_cross_entropy(0.3)(scores, labels)
    target = 0.7 * np.array([1.0, 0, 0]) + 0.1
    np.testing.assert_allclose(found, [-(target @ log_p)], rtol=1e-5)
    np.testing.assert_allclose(target, [0.8, 0.1, 0.1])
    np.testing.assert_allclose(found, [expected], rtol=1e-5)
    others = smoothed_cross_entropy(0.2, over="others")(scores, labels)
    np.testing.assert_allclose(others, found, rtol=1e-5)  # 0.3 * 2 / 3
    assert smoothed_cross_entropy(0.0) is cross_entropy
    for share, over, message in ((1.0, "all", "in \\[0, 1\\)"), (0.1, "some", "over")):
        with pytest.raises(ValueError, match=message):
            smoothed_cross_entropy(share, over=over)


# --- Plan -----------------------------------------------------------------------------


def test_the_plan_by_hand():
    plan = make_plan(method_of("rigl"), TICKETS, epoch_steps=3, milestones=(6, 9))
    assert plan.updates == (4, 8)
    assert plan.explorations == (12, 16)
    assert plan.collections == (16, 20)
    assert plan.total_steps == 20
    assert [plan.phase_of(s) for s in (0, 11, 12, 15, 16, 19)] == [
        *["phase 1"] * 2,
        *["cycle 1/2"] * 2,
        *["cycle 2/2"] * 2,
    ]
    text = describe(plan, method_of("rigl"), RATE)
    assert "2 topology updates in place of a weight step" in text
    assert "0.1, 0.01 from step 6, 0.001 from step 9" in text
    assert "cycle 2 of 2: steps 16 to 19" in text


def test_no_update_after_the_last_step():
    tickets = TicketPlan(phase1_steps=8, cycle_steps=1, cycles=0)
    method = method_of("set")
    assert scheduled(method, 8, tickets)
    assert make_plan(method, tickets, epoch_steps=1).updates == (4,)


def test_the_budget_in_steps():
    tickets = ticket_plan(ticket_budget(250), epoch_steps=391, cycle_epochs=8)
    assert tickets == TicketPlan(226 * 391, 8 * 391, 3)


# --- Loop -----------------------------------------------------------------------------


def test_one_exploration_a_cycle_and_frozen_masks_within_it():
    steps, seen = steps_of("rigl"), []

    def watched(state, batch):
        state, report = steps.train(state, batch)
        seen.append(jax.device_get((state.step, state.method.masks)))
        return state, report

    _, recorder = run(experiment_of("rigl", steps=steps._replace(train=watched)))
    assert recorder.events == [
        ("update", 4),
        ("update", 8),
        ("explore", 12),
        ("explore", 16),
    ]
    changed_at = [
        int(step) - 1
        for (_, before), (step, after) in itertools.pairwise(seen)
        if any(
            (a != b).any()
            for a, b in zip(
                jax.tree.leaves(before), jax.tree.leaves(after), strict=True
            )
        )
    ]
    assert changed_at == [5, 9, 12, 16]  # RigL's updates consume steps 4 and 8
    assert sorted(recorder.loss) == list(range(20))


def test_superposition_never_feeds_back():
    with_it, _ = finished("rigl")
    without, _ = run(experiment_of("rigl", superposition=None))
    assert without.superposed is None
    assert_same_bits(with_it.state.train, without.state.train)


def test_the_superposed_ticket_is_the_average_of_the_tickets():
    outcome, listener = finished("rigl")
    assert list(listener.networks) == ["phase 1", "ticket 1", "ticket 2"]
    ours, one, two = outcome.superposed, *list(listener.networks.values())[1:]
    jax.tree.map(
        lambda s, a, b: np.testing.assert_allclose(s, (a + b) / 2, atol=1e-6),
        ours.model_state,
        one.model_state,
        two.model_state,
    )
    mask = ours.masks["dense1"]["kernel"]
    mean = (one.params["dense1"]["kernel"] + two.params["dense1"]["kernel"]) / 2
    np.testing.assert_allclose(
        ours.params["dense1"]["kernel"], np.where(mask, mean, 0), atol=1e-6
    )
    assert counts(ours.masks)[-1] == counts(one.masks)[-1]


def test_phase_1_can_be_a_ticket():
    outcome, recorder = run(experiment_of("rigl", include_phase1=True))
    three = [net.model_state["bn1"]["mean"] for net in recorder.networks.values()]
    found = outcome.superposed.model_state["bn1"]["mean"]
    np.testing.assert_allclose(found, sum(three) / 3, atol=1e-6)


def test_the_same_seed_gives_the_same_bits():
    first, recorder = finished("rigl")
    again, told = run(experiment_of("rigl"))
    assert_same_bits(first, again)
    assert told.loss == recorder.loss
    other, _ = run(experiment_of("rigl"), seed=1)
    kernels = [o.state.train.params["dense1"]["kernel"] for o in (first, other)]
    assert (kernels[0] != kernels[1]).any()


def test_eight_devices_train_as_one():
    helpers.need_devices(8)
    one, _ = finished("rigl")
    eight, _ = finished("rigl", devices=8)
    for a, b in ((one.state.train, eight.state.train),):
        assert counts(a.method.masks) == counts(b.method.masks)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), a.params, b.params
        )
    assert counts(one.superposed.masks)[-1] == counts(eight.superposed.masks)[-1]


def test_the_batch_must_fit_the_devices():
    with pytest.raises(ValueError, match="batch_size=12 must be a multiple of the 8"):
        data_shardings(data_mesh(), batch_size=12)


@pytest.mark.parametrize(("at", "phase"), [(5, "phase 1"), (13, "cycle 1/2")])
def test_a_loss_that_is_not_finite_stops_and_says_where(at, phase):
    batch = batches_of()

    def poisoned(step):
        rows = batch(step)
        images, labels = rows.examples
        return rows._replace(examples=(images * np.nan, labels)) if step == at else rows

    recorder = Recorder()
    with pytest.raises(TrainingDiverged, match=rf"loss is nan at step {at} \({phase}"):
        run(experiment_of("rigl", batches=poisoned), recorder=recorder)
    assert sorted(recorder.loss) == list(range(at))  # all before it was kept
    assert ("ticket 1" in recorder.networks) is False


def test_a_network_that_is_not_finite_stops_too():
    steps = steps_of("rigl")
    broken = dataclasses.replace(
        TASK, summarize=lambda sums: TASK.summarize(sums) | {"nll": float("inf")}
    )
    steps = steps._replace(spec=dataclasses.replace(steps.spec, task=broken))
    with pytest.raises(TrainingDiverged, match="validation loss is inf at step 2"):
        run(experiment_of("rigl", steps=steps, validate_every_steps=3))


# --- Evaluation -----------------------------------------------------------------------


def test_evaluation_counts_every_example_once():
    outcome, _ = finished("rigl")
    net, (images, labels) = outcome.network, data()
    for batch_size in (8, 20, 32):
        place = data_shardings(data_mesh(jax.devices()[:1]), batch_size=batch_size)
        batches = resident.evaluation_batches(
            images, labels, batch_size=batch_size, shardings=place
        )
        metrics = evaluate(TASK, net, batches)
        logits = model_of().apply(
            {"params": net.params, "batch_stats": net.model_state}, images, train=False
        )
        assert metrics["examples"] == N
        right = np.mean(np.argmax(logits, -1) == labels)
        np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-6)
        nll = np.mean(cross_entropy(logits, jnp.asarray(labels)))
        np.testing.assert_allclose(metrics["nll"], nll, rtol=1e-5)


def test_reestimated_statistics_are_those_of_the_data():
    outcome, _ = finished("rigl")
    net = outcome.superposed
    task = task_of(prepare=lambda batch, key: (batch[0], batch[1]))
    images, labels = data()
    halves = [(images[:10], labels[:10]), (images[10:], labels[10:])]
    found = reestimate(task, net, halves, jax.random.key(0)).model_state["bn1"]
    hidden = images.reshape(N, -1) @ net.params["dense1"]["kernel"]
    np.testing.assert_allclose(found["mean"], hidden.mean(0), atol=1e-5)
    # As batch norm keeps them, of n - 1.
    variance = (hidden[:10].var(0, ddof=1) + hidden[10:].var(0, ddof=1)) / 2
    np.testing.assert_allclose(found["var"], variance, atol=1e-5)
    plain = Network(params={}, model_state={}, masks={})
    assert reestimate(task, plain, halves, jax.random.key(0)) is plain


# --- Data and models ------------------------------------------------------------------


def test_an_epoch_has_every_example_and_whole_batches():
    key = jax.random.key(0)
    rows = [resident.epoch_rows(key, epoch, N, BATCH) for epoch in (0, 0, 1)]
    assert rows[0].shape == (3, 8)
    np.testing.assert_array_equal(rows[0], rows[1])
    assert (rows[0] != rows[2]).any()
    flat = rows[0].reshape(-1)
    np.testing.assert_array_equal(np.sort(flat[:N]), np.arange(N))
    np.testing.assert_array_equal(flat[N:], flat[: 24 - N])  # the wrap


def test_models_by_name():
    assert isinstance(make_model("conv", features=(4, 4)), ConvNet)
    with pytest.raises(ValueError, match="did you mean 'conv'"):
        make_model("convv")
    with pytest.raises(
        ValueError, match="no option 'feature'; did you mean 'features'"
    ):
        make_model("mlp", feature=(4,))
    variables = make_model("conv", features=(4, 4)).init(
        jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False
    )
    assert variables["params"]["conv2"]["kernel"].shape == (3, 3, 4, 4)
    assert variables["params"]["classifier"]["kernel"].shape == (4 * 4 * 4, 10)


def test_a_start_within_the_tickets_needs_the_average():
    outcome, _ = finished("rigl")
    state = RunState(jax.device_put(outcome.state.train))
    with pytest.raises(ValueError, match="lacks the average of the tickets"):
        train(experiment_of("rigl"), state, Recorder())
