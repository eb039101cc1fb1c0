"""What the models share: layers after PyTorch's conventions, and three hooks.

The references are PyTorch code, so that padding is symmetric at every stride, the
initializers are PyTorch's and so are the running statistics of batch norm. Parameters
and statistics are float32 whatever the dtype of the computation.

Shapes: B images of H x W pixels, C channels.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sup_tickets.checks import check_one_of

Activation = Callable[[jax.Array], jax.Array]
"""Elementwise, shape and dtype kept."""

Bridge = Callable[["Layers", jax.Array, jax.Array, str], jax.Array]
"""``bridge(layers, x, y, name) -> y``: what replaces the output of one convolution.

Called once for each convolution over more than a pixel, and for each hidden dense layer
of a model without convolutions, with the maker of the model's layers, the layer's
input, the output of its batch norm (before the residual addition and the activation)
and its unique path, such as "stage2/block1/conv1". In a pre-activation block the second
convolution has no batch norm before the addition: there ``y`` is its plain output. It
runs within the compact call of the module that owns the layer: layers made in it become
siblings, under the name that they are given.
"""

uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's kaiming_uniform(a=sqrt(5))."""

normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""N(0, 2 / (k * k * features)): He et al. for ReLU."""

lecun = nn.initializers.lecun_normal()
"""Flax's default."""

CONV_INITS = {"torch": uniform_fan_in, "fan_out": normal_fan_out, "lecun": lecun}
DENSE_INITS = {
    "torch": uniform_fan_in,
    "normal": nn.initializers.normal(0.01),
    "lecun": lecun,
}


def bias_init(init: str, fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for "torch", else zeros."""
    if init != "torch":
        return nn.initializers.zeros
    limit = fan_in**-0.5

    def uniform(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return uniform


class Network(nn.Module, kw_only=True):  # type: ignore[call-arg]
    """What all networks of images share.

    They are called with ``[B, H, W, C]`` float images and ``train``, whether batch norm
    uses, and updates by, the statistics of the batch, and return ``[B, classes]``
    float32 logits.
    """

    activation: Activation = nn.relu
    bridge: Bridge | None = None
    dtype: Any = jnp.float32  # of the computation


class NormNetwork(Network, kw_only=True):  # type: ignore[call-arg]
    """What those with batch norm share."""

    bn_momentum: float = 0.9  # share of the old running statistics at each step
    bn_epsilon: float = 1e-5
    bn_unbiased: bool = True  # running variances of n - 1, as PyTorch's; or n


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes the layers of one model, in the compact call that it is used in."""

    train: bool  # whether batch norm uses, and updates by, statistics of the batch
    activation: Activation = nn.relu
    bridge: Bridge | None = None
    dtype: Any = jnp.float32  # of the computation
    bn_momentum: float = 0.9  # share of the old running statistics at each step
    bn_epsilon: float = 1e-5
    bn_unbiased: bool = True  # see `BatchNorm`
    conv_init: str = "torch"  # of CONV_INITS
    dense_init: str = "torch"  # of DENSE_INITS

    def __post_init__(self) -> None:
        check_one_of("conv_init", self.conv_init, CONV_INITS)
        check_one_of("dense_init", self.dense_init, DENSE_INITS)

    @classmethod
    def of(cls, model: nn.Module, *, train: bool, **inits: Any) -> "Layers":
        """With those of our fields that a model has."""
        names = (field.name for field in dataclasses.fields(cls))
        own = {name: getattr(model, name) for name in names if hasattr(model, name)}
        return cls(train=train, **own, **inits)

    def conv(
        self,
        x: jax.Array,
        features: int,
        name: str,
        *,
        size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        bias: bool = False,
    ) -> jax.Array:
        """A ``size`` x ``size`` convolution; padding defaults to half the size."""
        pad = size // 2 if padding is None else padding
        return nn.Conv(
            features,
            (size, size),
            strides=(stride, stride),
            padding=((pad, pad), (pad, pad)),
            feature_group_count=groups,
            use_bias=bias,
            dtype=self.dtype,
            kernel_init=CONV_INITS[self.conv_init],
            bias_init=bias_init(self.conv_init, size * size * x.shape[-1] // groups),
            name=name,
        )(x)

    def norm(self, x: jax.Array, name: str) -> jax.Array:
        """Batch norm, in float32 or wider until its result."""
        norm = BatchNorm(
            train=self.train,
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            unbiased=self.bn_unbiased,
            name=name,
        )
        return norm(x.astype(wide(self.dtype))).astype(self.dtype)

    def conv_norm(
        self,
        x: jax.Array,
        features: int,
        within: Sequence[str],
        index: int | str = "",
        **options: Any,
    ) -> jax.Array:
        """Convolution "conv<index>", batch norm "bn<index>", and the bridge over both.

        Args:
          x: [B, H, W, C] float array.
          features: of the convolution.
          within: path of the module that calls.
          index: ends both names.
          **options: of ``conv``.
        """
        name = f"conv{index}"
        y = self.norm(self.conv(x, features, name, **options), f"bn{index}")
        return self.bridged(x, y, (*within, name)) if options.get("size", 3) == 3 else y

    def bridged(self, x: jax.Array, y: jax.Array, path: Sequence[str]) -> jax.Array:
        """``y``, or what the bridge makes of it."""
        return y if self.bridge is None else self.bridge(self, x, y, "/".join(path))

    def dense(
        self, x: jax.Array, features: int, name: str, *, bias: bool = True
    ) -> jax.Array:
        """A fully connected layer."""
        return nn.Dense(
            features,
            use_bias=bias,
            dtype=self.dtype,
            kernel_init=DENSE_INITS[self.dense_init],
            bias_init=bias_init(self.dense_init, x.shape[-1]),
            name=name,
        )(x)

    def logits(self, x: jax.Array, classes: int, *, bias: bool = True) -> jax.Array:
        """The layer "classifier"; float32 or wider."""
        logits = self.dense(x, classes, "classifier", bias=bias)
        return logits.astype(wide(self.dtype))


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, whose running variances are PyTorch's.

    A batch is normalized by its variance, the mean square of n deviations. PyTorch's
    running variance, by which a network is evaluated, is that of n - 1 instead: the
    default, since the numbers of the papers were measured so. ``unbiased=False`` is
    Flax's, of n as well. With n = 1, which PyTorch refuses, both are 0.

    Flax's own layer is not used for a second reason: it cuts the variance off at 0 by a
    maximum, and the derivative of a maximum asks which side *equals* it. XLA may
    compute the sides twice, rounded differently, and then the derivative is lost.
    """

    train: bool  # whether to use, and update by, the statistics of the batch
    momentum: float = 0.9  # share of the old running statistics
    epsilon: float = 1e-5
    unbiased: bool = True  # running variances of n - 1, else of n

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] of float32 or wider, shape and dtype kept."""
        shape = x.shape[-1:]
        running = [
            self.variable("batch_stats", name, start, shape, jnp.float32)
            for name, start in (("mean", jnp.zeros), ("var", jnp.ones))
        ]
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        mean, variance = (statistic.value for statistic in running)
        if self.train:
            mean, variance = _moments(x)
            if not self.is_initializing():
                n = x.size // x.shape[-1]
                of_all = variance * (n / max(n - 1, 1) if self.unbiased else 1.0)
                for old, new in zip(running, (mean, of_all), strict=True):
                    new = new.astype(old.value.dtype)
                    old.value = self.momentum * old.value + (1 - self.momentum) * new
        lead = (1,) * (x.ndim - 1)
        mean, variance, scale, bias = (
            part.astype(x.dtype).reshape(lead + shape)
            for part in (mean, variance, scale, bias)
        )
        return (x - mean) * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over all axes but the last, in one pass over ``x``."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    variance = jnp.square(x).mean(axes) - jnp.square(mean)
    # Rounding may make it negative. No maximum, see `BatchNorm`; NaN stays.
    return mean, jnp.where(variance < 0, jnp.zeros_like(variance), variance)


def halve(x: jax.Array) -> jax.Array:
    """The maximum of every 2 x 2 pixels.

    An odd last row or column is left out, as in PyTorch. The derivative goes to one of
    the four places, chosen by comparing them with each other: comparing them with their
    maximum, as that of `jnp.max` does, loses it where XLA computes both apart.
    """
    return nn.max_pool(x, (2, 2), strides=(2, 2))


def wide(dtype: Any) -> Any:
    """The dtype of statistics and logits: float32, or what is wider."""
    return dtype if jnp.dtype(dtype).itemsize > 4 else jnp.float32


def mean_pixel(x: jax.Array) -> jax.Array:
    """Global average pooling: [B, H, W, C] to [B, C]."""
    return x.mean((1, 2))


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, as in PyTorch; `nn.gelu` approximates by default."""
    return nn.gelu(x, approximate=False)
