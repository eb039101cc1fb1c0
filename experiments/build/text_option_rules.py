"""What is of texts alone, and what of images; see `experiments.build.option_rules`."""

from experiments.build.option_rule import Conflict, Rule
from experiments.build.tost import tost_parts
from experiments.config.fields import Config
from sup_tickets.data.text import is_text


def _of_text(c: Config) -> bool:
    return is_text(c.data.name)


TEXT_RULES = (
    Rule(
        ("data.unit", "data.vocabulary", "data.sequence"),
        _of_text,
        "config.data.name is a text",
    ),
    Rule(
        (
            *("data.dir", "data.split_seed", "data.shrink", "data.workers"),
            *("data.crop_padding", "data.crop_mode", "data.flip", "data.cutout"),
        ),
        lambda c: not _of_text(c),
        "config.data.name is a set of images",
    ),
)
"""When fields of texts and of images have an effect."""

TEXT_CONFLICTS = (
    Conflict(
        ("mask.name", "data.name"),
        lambda c: _of_text(c) and c.mask.name not in ("random", "magnitude"),
        "scores that look at data are of images; it must be 'random' or 'magnitude'",
    ),
    Conflict(
        ("mask.orthogonal", "data.name"),
        lambda c: _of_text(c) and c.mask.orthogonal,
        "orthogonal weights are drawn for networks of images",
    ),
    Conflict(
        ("tost.parts", "data.name"),
        lambda c: _of_text(c) and not set(tost_parts(c)) <= {"labels"},
        "networks of texts have no ghosts and are not re-scaled; it must be 'labels'",
    ),
)
"""What cannot be had of a text."""
