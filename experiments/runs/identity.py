"""Which run it is: its configuration, and the contents of the files it starts from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.config.fields import Config, flat
from sup_tickets.training.network_files import contents_digest

FREE = ("checkpoint.", "report.", "data.dir", "data.workers", "branch_from")
"""Fields that may change while a run goes on: they do not change what it computes.

A run may only branch from one that has computed the same until then.
"""

ASIDE = ("seed", "compare", *FREE)
"""Fields in which runs of one setting may differ."""

CONTENTS = "the contents of config.masks"
"""The name of the digest of the file that a run starts from."""


def named_fields(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say what a run computes, as JSON gives them back."""
    nested = config if isinstance(config, Mapping) else config.to_dict()
    plain = flat(json.loads(json.dumps(nested)))
    return {f"config.{k}": v for k, v in plain.items() if not k.startswith(FREE)}


def identity_of(config: Config) -> dict[str, Any]:
    """What a run is known by: dotted names with values.

    Args:
      config: of the run. Of a file that is not there any more nothing is known.

    Raises:
      ValueError: if the file that it starts from is damaged.
    """
    masks = config.get("masks")
    known = Path(masks).is_file() if masks else False
    digest = contents_digest(masks) if known else None
    return named_fields(config) | {CONTENTS: digest}


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first name in which two identities differ, with both values; or ``None``."""
    for name in dict.fromkeys([*new, *old]):
        there, here = old.get(name, "nothing"), new.get(name, "nothing")
        if name == CONTENTS:
            if None not in (there, here) and "nothing" != there != here:
                return f"{name} ({new.get('config.masks')}) are others now"
        elif there != here:
            return f"{name} is {there!r} there and {here!r} here"
    return None
