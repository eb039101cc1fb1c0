"""The family of methods, each a preset of `dynamic`, and their registry."""

import inspect
from collections.abc import Callable
from typing import Any

import jax

from sup_tickets.checks import did_you_mean
from sup_tickets.dynamic import Method, MethodState, dynamic
from sup_tickets.saliency import by_chance, by_momentum
from sup_tickets.types import Params


def dense() -> Method:
    """No sparsity: every mask is ``None``. The baseline of all."""
    method = dynamic("dense", sparsity=0.0, update_every=0)

    def init(key: jax.Array, params: Params) -> MethodState:
        return MethodState(jax.tree.map(lambda _: None, params), key)

    return method._replace(init=init)


def static(*, sparsity: float, **options: Any) -> Method:
    """A random mask that never changes (random pruning).

    Exploring a cheap ticket drops by magnitude and grows by gradient; the paper leaves
    open what it did there.

    Args:
      sparsity: in [0, 1).
      **options: of `dynamic`.
    """
    if "update_every" in options:
        raise ValueError(
            "method 'static' never updates; it has no option 'update_every', got "
            f"{options['update_every']}"
        )
    return dynamic("static", sparsity=sparsity, update_every=0, **options)


def sparse_evolutionary(*, sparsity: float, **options: Any) -> Method:
    """SET: drop by magnitude, grow at random.

    Args:
      sparsity: in [0, 1).
      **options: of `dynamic`.

    References:
      Mocanu et al., Scalable training of artificial neural networks with adaptive
      sparse connectivity inspired by network science, 2018,
      https://arxiv.org/abs/1707.04780
    """
    return dynamic("set", sparsity=sparsity, **{"grow_score": by_chance, **options})


def rigl(*, sparsity: float, **options: Any) -> Method:
    """RigL: drop by magnitude, grow by the dense gradient, instead of a weight step.

    Args:
      sparsity: in [0, 1).
      **options: of `dynamic`; the paper anneals ``drop_fraction`` with
        `cosine_fraction` from 0.3 to 0 and stops at three quarters of the training.

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020,
      https://arxiv.org/abs/1911.11134
    """
    return dynamic("rigl", sparsity=sparsity, **{"consumes_step": True, **options})


def set_itop(*, sparsity: float, **options: Any) -> Method:
    """SET as In-Time Over-Parameterization runs it: long intervals, R_s tracked.

    Args:
      sparsity: in [0, 1).
      **options: of `dynamic`; ``prefer_unexplored=True`` grows never-active places
        first (the release's "random_unfired").

    References:
      Liu et al., Do We Actually Need Dense Over-Parameterization?, 2021,
      https://arxiv.org/abs/2102.02887
    """
    preset = {"grow_score": by_chance, "update_every": 1500, **_ITOP}
    return dynamic("set-itop", sparsity=sparsity, **{**preset, **options})


def rigl_itop(*, sparsity: float, **options: Any) -> Method:
    """RigL as In-Time Over-Parameterization runs it: long intervals, R_s tracked.

    Its updates replace no weight step, as in the PyTorch family.

    Args:
      sparsity: in [0, 1).
      **options: of `dynamic`.

    References:
      Liu et al., Do We Actually Need Dense Over-Parameterization?, 2021,
      https://arxiv.org/abs/2102.02887
    """
    preset = {"update_every": 4000, **_ITOP}
    return dynamic("rigl-itop", sparsity=sparsity, **{**preset, **options})


def granet(
    *,
    sparsity: float,
    prune_end_step: int,
    initial_sparsity: float = 0.5,
    **options: Any,
) -> Method:
    """GraNet: prune globally along a cubic schedule, and rewire, at every update.

    Args:
      sparsity: in [0, 1), at the end.
      prune_end_step: end of the pruning window, in steps.
      initial_sparsity: 0.5 is the sparse-to-sparse form, 0 the dense-to-sparse one.
      **options: of `dynamic`.

    References:
      Liu et al., Sparse Training via Boosting Pruning Plasticity with
      Neuroregeneration, 2021, https://arxiv.org/abs/2106.10404. The release stops one
      update short of the final sparsity; here it is met exactly.
    """
    preset = {"drop_fraction": 0.5, "rounding": "ceil", "update_every": 1000}
    return dynamic(
        "granet",
        sparsity=sparsity,
        initial_sparsity=initial_sparsity,
        prune_end_step=prune_end_step,
        **{**preset, **options},
    )


def granet_dense(*, sparsity: float, prune_end_step: int, **options: Any) -> Method:
    """GraNet from a dense network; see `granet`.

    Args:
      sparsity: in [0, 1), at the end.
      prune_end_step: end of the pruning window, in steps.
      **options: of `dynamic`.
    """
    method = granet(
        sparsity=sparsity,
        prune_end_step=prune_end_step,
        **{"initial_sparsity": 0.0, **options},
    )
    return method._replace(name="granet-dense")


def gradual_magnitude(
    *, sparsity: float, prune_end_step: int, **options: Any
) -> Method:
    """GMP: prune a dense network by magnitude along a cubic schedule, never grow.

    Args:
      sparsity: in [0, 1), at the end.
      prune_end_step: end of the pruning window, in steps.
      **options: of `dynamic`; ``prune_scope="layer"`` prunes each layer alike.

    References:
      Zhu and Gupta, To prune, or not to prune, 2017, https://arxiv.org/abs/1710.01878
    """
    preset = {"initial_sparsity": 0.0, "rewires": False, "end_step": prune_end_step}
    return dynamic(
        "gmp",
        sparsity=sparsity,
        prune_end_step=prune_end_step,
        **{**preset, **options},
    )


def sparse_momentum(*, sparsity: float, **options: Any) -> Method:
    """SNFS: grow by the averaged dense gradient, shared out between layers by it.

    Args:
      sparsity: in [0, 1).
      **options: of `dynamic`; ``redistribute=False`` keeps every layer's count (the
        variant in RigL's code).

    References:
      Dettmers and Zettlemoyer, Sparse Networks from Scratch, 2019,
      https://arxiv.org/abs/1907.04840
    """
    preset = {
        "drop_fraction": 0.5,
        "rounding": "ceil",
        "grow_score": by_momentum,
        "momentum_decay": 0.9,
        "redistribute": True,
    }
    return dynamic("snfs", sparsity=sparsity, **{**preset, **options})


_ITOP = {"drop_fraction": 0.5, "rounding": "ceil", "track_exploration": True}

METHODS: dict[str, Callable[..., Method]] = {
    "dense": dense,
    "static": static,
    "set": sparse_evolutionary,
    "rigl": rigl,
    "set-itop": set_itop,
    "rigl-itop": rigl_itop,
    "granet": granet,
    "granet-dense": granet_dense,
    "gmp": gradual_magnitude,
    "snfs": sparse_momentum,
}
"""Every method by its short name."""


def make_method(name: str, **options: Any) -> Method:
    """The method with a short name, `METHODS`.

    Args:
      name: "rigl", for example.
      **options: of the method's function, or of `dynamic`.

    Raises:
      ValueError: for an unknown name or option, suggesting the nearest.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}{did_you_mean(name, METHODS)}")
    own = inspect.signature(METHODS[name]).parameters
    known = set(own) - {"options"}
    if "options" in own:
        known |= set(inspect.signature(dynamic).parameters) - {"name"}
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known)
            raise ValueError(f"method {name!r} has no option {option!r}{hint}")
    return METHODS[name](**options)
