"""What all configurations share: every field with its default, and their arguments.

The defaults are those of Sup-tickets on CIFAR. [paper] marks numbers of the paper and
its supplement, [release] those of its code where the paper is silent.
"""

from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.config.values import (
    has_field,
    read_value,
    set_field,
    split_argument,
)

ALIASES = {
    "model": "model.name",
    "method": "method.name",
    "sparsity": "method.sparsity",
    "sup": "sup.enabled",
    "epochs": "train.epochs",
    "cycles": "sup.cycles",
    "cycle_epochs": "sup.cycle_epochs",
    "seed": "seed",
    "view": "view.name",
    "mask": "mask.name",
    "masks": "masks",
    "tost": "tost.parts",
    "data": "data.name",
}
"""Short names of the fields that are changed most, for arguments and sweeps."""

TOST_PARTS = ("soft", "skips", "rescale", "labels")
"""What ToST changes: neurons, skip connections, initial weights, targets."""


def default() -> ConfigDict:
    """Every field of a configuration, for CIFAR."""
    config: Any = ConfigDict()
    config.seed = 0  # of weights, masks, batches and augmentation; not of the split
    config.evaluate = "test"  # or "validation", to choose anything by looking
    config.compare = False  # also train the dense network (no ToST), the method alone

    config.data = _data()
    config.model = ConfigDict()
    config.model.name = "vgg16"  # or any other of sup_tickets.models.MODELS
    config.model.dtype = "float32"  # of the computation, or "bfloat16"
    config.model.options = ConfigDict()  # further fields of the model
    config.method = _method()
    config.view = ConfigDict()
    config.view.name = ""  # what is seen of the weights, of sup_tickets.views.VIEWS
    config.view.options = ConfigDict()  # arguments of the view's function; in steps
    config.masks = placeholder(str)  # file of a network whose masks a run starts with
    config.branch_from = placeholder(str)  # run whose phase 1 this one starts after
    config.mask = _mask()
    config.tost = _tost()
    config.train = _train()
    config.sup = _sup()

    config.checkpoint = ConfigDict()
    config.checkpoint.every_minutes = 10.0  # 0: not by the clock
    config.checkpoint.every_steps = 0  # 0: not by steps; alone with several processes
    config.checkpoint.keep_epochs = ()  # networks to keep in networks/; 0: the first

    config.mesh = ConfigDict()  # see docs/pods.md
    config.mesh.model = 1  # devices along the axis "model"; the others are along "data"
    config.mesh.fsdp = False  # True: each device along "data" has a part of each weight
    config.mesh.rules = ()  # "EXPRESSION = AXES", as "dense/kernel$ = - model"

    config.report = ConfigDict()
    config.report.path_points = 11  # networks between two tickets; 0 leaves paths out
    config.report.plane_points = 0  # a side of the loss plane; 0 leaves it out
    config.report.examples = 2000  # of the split, for paths and plane; 0 is all
    return config


def with_argument(config: Any, argument: str) -> ConfigDict:
    """Changes fields as ``FILE.py:name=value,name=value`` says.

    Args:
      config: changed in place, and returned.
      argument: names are those of `ALIASES` or dotted fields; values are texts as in
        `experiments.config.values`. An empty text changes nothing.

    Raises:
      ValueError: for an unknown name, or a value of another type.
    """
    given = []
    for name, text in split_argument(argument, ALIASES):
        field = ALIASES.get(name, name)
        if not has_field(config, field):
            raise ValueError(
                f"the argument of the configuration has an unknown name {name!r}; "
                f"short names are {', '.join(ALIASES)}, and any field can be given by "
                "its dotted name"
            )
        set_field(config, field, read_value(name, field, text))
        given.append(field)
    return settle(config, given)


def settle(config: Any, given: Collection[str]) -> ConfigDict:
    """Sets what follows from the fields that were given, whichever way they were.

    With "mask.name" or "masks" the method is "static" and there are no cheap tickets,
    unless these are given too: the masks that were asked for are trained as they are.
    "tost.parts" may be "true", "false" or "released", which sets "tost.released" too.
    Doing it again, with more fields, is as doing it once with all of them.

    Args:
      config: changed in place, and returned.
      given: dotted names of the fields that the user set.

    Raises:
      ValueError: for parts that ToST does not have.
    """
    if "mask.name" in given or ("masks" in given and config.masks is not None):
        if "method.name" not in given:
            config.method.name = "static"
        if "sup.enabled" not in given:
            config.sup.enabled = False
    if "tost.parts" in given:
        tost, words = config.tost, config.tost.parts.lower()
        tost.parts = _tost_parts(tost.parts)
        if words == "released" and "tost.released" not in given:
            tost.released = True
    return config


def _tost_parts(text: str) -> str:
    whole = {"true": TOST_PARTS, "released": TOST_PARTS, "false": (), "": ()}
    parts = whole.get(text.lower(), tuple(text.split("+")))
    for part in parts:
        if part not in TOST_PARTS:
            raise ValueError(
                f"tost must be true, false, released or some of "
                f"{', '.join(TOST_PARTS)} with + between, got {text!r}"
            )
    return "+".join(parts)


def _data() -> ConfigDict:
    data: Any = ConfigDict()
    data.name = "cifar10"  # of sup_tickets.data.DATASETS, or see configs/text.py
    data.dir = placeholder(str)  # by default $TFDS_DATA_DIR, or ~/tensorflow_datasets
    data.split_seed = 0  # of the validation split; keep it in runs that are compared
    data.validation_examples = 5000  # cut from the training set [release]; 0: use all
    data.training_examples = 0  # of what is left, to train on; 0: all
    data.shrink = 1  # pixels, side of the squares that are averaged into one
    data.batch_size = 128  # examples, on all devices together [paper]; rows of a text
    data.unit = "words"  # of a text; "spaced" or "characters"
    data.vocabulary = 0  # largest number of different words or characters; 0: all
    data.sequence = 35  # words or characters of a row of a batch
    data.crop_padding = 4  # pixels at each edge before a random crop; 0 is none
    data.crop_mode = "zero"  # what is there, "zero" or "reflect"
    data.flip = True  # left and right, with probability 1/2
    data.cutout = 0  # pixels, side of a square that is blanked out; 0 is none
    data.workers = 0  # processes that decode; of "imagenet2012" alone
    return data


def _method() -> ConfigDict:
    method: Any = ConfigDict()
    method.name = "rigl"  # or any other of sup_tickets.methods.METHODS
    method.sparsity = 0.95  # of all kernels together [paper: 0.8, 0.9, 0.95]
    method.distribution = "erk"  # over the layers [paper]; "uniform" or "er"
    method.keep_dense = ()  # expressions of the names of layers that are never pruned
    method.structure = ""  # "fan-in" (constant) or N:M, "2:4", of every sparse layer
    method.update_every_steps = 1000  # between topology updates [release]
    method.update_end_fraction = 1.0  # of phase 1; the last update [release]
    method.drop_fraction = 0.5  # of each layer's active weights, at first [release]
    method.drop_schedule = "constant"  # [release], "cosine" or "linear" (to 0)
    method.initial_sparsity = placeholder(float)  # of granet, by default 0.5 [paper]
    method.prune_end_fraction = 0.487  # of phase 1; of pruning methods alone [release]
    method.options = ConfigDict()  # further arguments of the method's function
    return method


def _mask() -> ConfigDict:
    mask: Any = ConfigDict()
    mask.name = "random"  # the method's own; or see experiments.build.start.MASKS
    mask.rounds = 0  # of pruning; 0: 100 for "synflow" [SynFlow], else 1
    mask.scope = "global"  # or "layer": the same density in each
    mask.examples_per_class = 10  # that scores look at [GraSP]
    mask.temperature = 200.0  # of "grasp" [GraSP]
    mask.pairing = "all"  # of "grasp"; gradients of all batches, or of "each" alone
    mask.ratios_only = False  # True: as many weights of each layer, at random places
    mask.orthogonal = False  # True: as many, placed and drawn by EOI
    mask.orthogonal_gain = 1.0  # sigma_w [EOI]
    mask.orthogonal_bias = 0.0  # deviation of biases, sigma_b [EOI]
    mask.weights = "init"  # those that were looked at; "new" ones; or of the "file"
    return mask


def _tost() -> ConfigDict:
    """The schedules are ours: the paper was not at hand, its release has none.

    A ghost that lives until the rate drops leaves no time to mend what is left, see
    docs/results/tost_pilot.md.
    """
    tost: Any = ConfigDict()
    tost.parts = ""  # of TOST_PARTS, with + between; or true, false, released
    tost.released = False  # True: nothing fades, as in the code of ToST
    tost.ghost_fraction = 0.2  # of phase 1, after which ghosts are gone
    tost.soft = "swish"  # ghost neurons; or "mish"
    tost.sharpness_start = 1.0
    tost.sharpness_end = 100.0  # just before they are ReLUs
    tost.sharpness_shape = "exponential"  # or "linear"
    tost.skip_shape = "linear"  # how skips fade from 1 to 0; or "cosine"
    tost.label_smoothing = 0.1  # share of the target, to the others alone [release]
    tost.rescale_steps = 180  # of GradInit [release]
    tost.rescale_rate = 0.01  # [release]
    tost.rescale_algorithm = "sgd"  # whose step is looked ahead; or "adam"
    return tost


def _train() -> ConfigDict:
    train: Any = ConfigDict()
    train.epochs = 250  # of both phases [paper]
    train.optimizer = "sgd"  # or "adamw"
    train.learning_rate = 0.1  # at first [paper]
    train.schedule = "step"  # of phase 1; "step", "cosine" or "constant"
    train.drop_epochs = ()  # rate / 10, from 1; by default 1/2, 3/4 of phase 1 [paper]
    train.warmup_epochs = 0  # stairs of one epoch [paper: 0; ImageNet: 5]
    train.momentum = 0.9  # of SGD [paper]
    train.nesterov = False  # of SGD [release]
    train.weight_decay = 5e-4  # [paper]
    train.no_weight_decay = ()  # expressions of names, as ("bias", "bn") [release: ()]
    train.clip_norm = placeholder(float)  # of the gradient; by default no limit
    train.averaging = "none"  # of weights: "restart" (SNT-ASGD) or "plain" (NT-ASGD)
    train.averaging_patience = 5  # validations without progress before it begins
    train.label_smoothing = 0.0  # share of the target [paper: 0; ImageNet: 0.1]
    train.label_smoothing_over = "all"  # classes, or the "others" alone (ToST)
    train.accumulate = 1  # parts of a batch, one after the other
    train.block_steps = 1  # weight steps a call, for small models
    train.validate_every_epochs = 5.0  # 0.5: twice an epoch; 0: ends of phases alone
    train.check_every_steps = 50  # steps between looks at the loss for NaN
    return train


def _sup() -> ConfigDict:
    sup: Any = ConfigDict()
    sup.enabled = True  # False: the method alone for the whole budget
    sup.cycles = 3  # cheap tickets [paper, CIFAR]
    sup.cycle_epochs = 8  # epochs each [paper, CIFAR]
    sup.extend_budget = False  # True: the tickets come on top of train.epochs
    sup.explore_fraction = 0.5  # of each layer's active weights [release]; 0: SWA
    sup.lr_min = 0.001  # lowest rate of a cycle [paper]
    sup.lr_max = 0.005  # highest rate of a cycle [paper]
    sup.form = "paper"  # of a cycle, see cheap_ticket_schedule: also "release", ...
    sup.kind = "cia"  # "cia" [paper], "caa" or "cima"
    sup.decay = placeholder(float)  # weight of the past; of "cima" alone
    sup.prune_each = True  # prune after every ticket [paper], or once
    sup.include_phase1 = False  # phase 1's network is a ticket too [release]
    sup.batch_norm = "av"  # statistics averaged [paper], or "bu": estimated anew
    return sup
