"""The rule that says, by default, whether a leaf is a kernel, and why.

It reads the last two parts of a leaf's path, the leaf's own name and its module's,
word by word (``LayerNorm_0`` is "layer norm"), and the leaf's rank, shape and dtype. A
block's name further up decides nothing: ``PreNorm_0/ff/kernel`` is the kernel of a
feed-forward layer. Known are the habits of Flax (Linen and NNX), Haiku, Equinox and of
ports of PyTorch and timm models, whose parts may be joined by dots.
"""

import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

# Own names of what is multiplied with a layer's inputs.
_KERNEL = {"kernel", "kernels", "weight", "weights", "w", "matrix"}
# Layers that hold a kernel themselves, and blocks that hold such layers.
_LAYER = {
    *("conv", "linear", "dense", "fc", "proj", "projection", "einsum", "general"),
    *("convolution", "lin", "gru", "lstm"),
}
_BLOCK = {
    *("mlp", "ff", "ffn", "act", "activation", "relu", "gelu", "silu", "attn"),
    *("attention", "block", "feedforward", "residual", "head", "modulation", "gate"),
}
_NORM = re.compile(
    r"(layer|batch|group|instance|rms|sync|filter|response|local|adaptive|scale|l2)*"
    r"norm(s|alization|alisation)?|[blg]n|frn"
)
# Norms of the weights themselves: what they hold is a kernel.
_OF_WEIGHTS = {"weight", "spectral"}

# Own names, by their last known word, of what is no kernel at any rank.
_DENSE = {
    "a bias": {"bias", "biases", "offset", "beta", "shift", "intercept"},
    "a scale": {
        *("scale", "scales", "gamma", "gammas", "gain", "lambda", "ls", "temperature"),
        *("slope", "alpha", "tau", "decay"),
    },
    "a token": {"token", "tokens", "cls", "latents", "registers", "prompt", "prompts"},
    "a logarithm, where 0 does not mean absent": {"log"},
}
_POSITION = {
    *("pos", "position", "positions", "positional", "posemb", "posembed", "wpe", "rel"),
    *("relative", "relpos", "pe", "freqs"),
}
_STATISTIC = {"running", "moving", "mean", "var", "variance", "average", "ema"}
_EMBEDDING = {"embedding", "embeddings", "embed", "embeds", "emb", "embedder"}
_TABLE = _EMBEDDING | {"weight", "weights", "table"}
_GATES = {*"ifgorzhxqkv", "ih", "hh"}  # letters that recurrent nets and attention add
_GHOST = re.compile(r"_ghost(/|$)", re.IGNORECASE)

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


class Verdict(NamedTuple):
    """What a rule says of a leaf."""

    sparse: bool
    reason: str
    kernel_of: str | None = None  # its dtype, if that alone is why it is dense


def judge(name: str, leaf: Any, module_type: str = "") -> Verdict:
    """Whether a leaf is sparse by default, and the reason.

    Args:
      name: name of the leaf, ``"dense/kernel"``.
      leaf: the leaf, of which shape and dtype are read.
      module_type: name of its module's class, where the tree has one (Equinox); it
        tells more than the name under which the module is kept.
    """
    dtype, shape = getattr(leaf, "dtype", None), getattr(leaf, "shape", None)
    if dtype is None or shape is None:
        return Verdict(False, f"no array, but {type(leaf).__name__}")
    if not (jnp.issubdtype(dtype, jnp.number) or dtype == np.bool_):
        return Verdict(False, f"of dtype {dtype}")
    reason = _dense_by_design(name, module_type)
    if reason is None and len(shape) < 2:
        reason = f"of rank {len(shape)}"
    named = _is_kernel_name(_own_words(name))
    inside = len(_parts(name)) > 1
    if reason is None and inside and not named and sum(n != 1 for n in shape) < 2:
        reason = "a vector: at most one axis is longer than 1"
    if reason is not None:
        return Verdict(False, reason)
    if not can_be_scored(dtype):
        return Verdict(False, f"of {dtype}", str(dtype) if named else None)
    return Verdict(True, _kind(name))


def default_rule(name: str, leaf: Any) -> bool:
    """Kernels and embeddings are sparse; what is dense by design is dense.

    Dense are, at any rank: biases (``b`` too, inside a module), scales and whatever a
    norm layer holds, layer scales, class tokens and the like, embeddings of positions
    and tables of relative ones, statistics, ghosts, a module's vectors in the shape of
    a matrix without a kernel's name; and what is not real floating point of 16 bits or
    more.

    Args:
      name: name of the leaf, ``"dense/kernel"``.
      leaf: an array, or a ``jax.ShapeDtypeStruct``.

    Example:
      >>> import jax.numpy as jnp
      >>> default_rule("ConvNormAct_0/Conv_0/kernel", jnp.ones((3, 3, 8, 8)))
      True
      >>> default_rule("attention/query/bias", jnp.ones((4, 8)))
      False
    """
    return judge(name, leaf).sparse


def can_be_scored(dtype: Any) -> bool:
    """Whether weights of a dtype can be ranked: real floats of 16 bits or more."""
    return bool(jnp.issubdtype(dtype, jnp.floating)) and jnp.dtype(dtype).itemsize >= 2


# --- Words ----------------------------------------------------------------------------


def _parts(name: str) -> list[str]:
    """The parts that say something: no indices, no ``~`` of Haiku."""
    return [part for part in re.split(r"[/.]", name) if re.search("[A-Za-z]", part)]


def _words(part: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(part)]


def _own_words(name: str) -> list[str]:
    return _words(_parts(name)[-1]) if _parts(name) else []


def _is_kernel_name(words: list[str]) -> bool:
    if words == ["weight", "g"]:  # the lengths of PyTorch's weight norm
        return False
    return bool(words) and bool({words[0], words[-1]} & _KERNEL)


def _kind(name: str) -> str:
    words = _own_words(name)
    if set(words) & _EMBEDDING:
        return "an embedding"
    return "a kernel" if _is_kernel_name(words) else "a matrix"


# --- Dense by design ------------------------------------------------------------------


def _dense_by_design(name: str, module_type: str) -> str | None:
    """The reason why a leaf of any rank is dense, or ``None``."""
    if _GHOST.search(name):
        return "a ghost, gone before training ends"
    parts = _parts(name)
    own = _words(parts[-1]) if parts else []
    modules = [_words(part) for part in (module_type, *parts[-2:-1])]
    return _by_own_name(own, inside=len(parts) > 1) or _by_module(own, modules)


def _by_own_name(own: list[str], *, inside: bool) -> str | None:
    if own[:1] == ["b"] and set(own[1:]) <= _GATES:
        return "a bias" if inside else None
    if own and set(own) <= _STATISTIC:
        return "a statistic"
    if _is_norm(own, own):
        return "of a norm"
    if own[-1:] in (["h"], ["w"]) and set(own[-2:-1]) & _POSITION:
        return "of positions"  # of height and width
    for word in reversed(own):
        if word in _KERNEL | _LAYER:
            return None
        for reason, words in _DENSE.items():
            if word in words:
                return reason
    return "of positions" if set(own) & _POSITION else None


def _by_module(own: list[str], modules: list[list[str]]) -> str | None:
    # The class of a module, if it says something, before the name it is kept under.
    for words in modules:
        if _is_norm(words, own):
            return "of a norm"
        if words[-1:] == ["ema"]:
            return "a statistic"
        if set(words) & _LAYER:
            return None
        if set(words[-1:]) & _BLOCK or not set(own) & _TABLE:
            continue
        if set(words) & _POSITION:
            return "of positions"
        if words[-1:] in (["bias"], ["biases"]):
            return "a bias"
    return None


def _is_norm(words: list[str], own: list[str]) -> bool:
    """Whether a module of this name is a norm layer, not a layer that has one."""
    found = [i for i, word in enumerate(words) if _NORM.fullmatch(word)]
    if not found:
        return False
    before, after = set(words[: found[-1]]), set(words[found[-1] + 1 :])
    if before & _OF_WEIGHTS or after & (_LAYER | _BLOCK):
        return False  # WeightNorm; ConvNormAct, LayerNormMLP
    # No library calls the weights of a norm so; by hand they may be.
    by_hand = own in (["kernel"], ["w"])
    return not (by_hand and before & (_LAYER | {"pre", "post"}))
