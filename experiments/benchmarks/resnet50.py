"""Trees with the shapes of ImageNet ResNet-50, for benchmarks of the core."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SPARSITY = 0.9
SHARE = 10  # one weight in ten is kept

Tree = dict[str, jax.Array]


def shapes() -> dict[str, tuple[int, ...]]:
    """Of the kernels: 54 leaves, 25,502,912 weights."""
    found: dict[str, tuple[int, ...]] = {"stem": (7, 7, 3, 64)}
    channels = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            found[f"{name}_conv1"] = (1, 1, channels, width)
            found[f"{name}_conv2"] = (3, 3, width, width)
            found[f"{name}_conv3"] = (1, 1, width, 4 * width)
            if block == 0:
                found[f"{name}_shortcut"] = (1, 1, channels, 4 * width)
            channels = 4 * width
    return found | {"classifier": (2048, 1000)}


def normal_tree(seed: int) -> Tree:
    """Normal draws."""
    generator = np.random.default_rng(seed)
    return {
        name: jnp.asarray(generator.standard_normal(shape, np.float32))
        for name, shape in shapes().items()
    }


def one_of_each_shape(tree: Tree) -> Tree:
    """The last leaf of each: 21 of the 54, 11,420,864 weights."""
    return {name: tree[name] for name in {x.shape: n for n, x in tree.items()}.values()}


def one_of_each_stage(tree: Tree) -> Tree:
    """The stem, a 3 x 3 kernel of each stage, the classifier: 6 leaves, 5,193,152."""
    stages = (f"stage{stage}_block0_conv2" for stage in range(4))
    return {name: tree[name] for name in ("stem", *stages, "classifier")}


def random_masks(counts: dict[str, int], tree: Tree) -> Any:
    """Masks with so many places True, at random."""
    generator = np.random.default_rng(2)

    def draw(count: int, leaf: jax.Array) -> jax.Array:
        chosen = generator.permutation(np.arange(leaf.size) < count)
        return jnp.asarray(chosen.reshape(leaf.shape))

    return jax.tree.map(draw, counts, tree)


def copy(tree: Any) -> Any:
    """A copy that may be donated."""
    return jax.tree.map(jnp.copy, tree)
