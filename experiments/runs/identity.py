"""Which run it is: its configuration, and the contents of the files it starts from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.build.data_checks import text_digest
from experiments.config.fields import Config, flat
from sup_tickets.training.network_files import contents_digest

FREE = ("checkpoint.", "mesh.", "report.", "data.dir", "data.workers", "branch_from")
"""Fields that may change while a run goes on: they do not change what it computes.

A run may only branch from one that has computed the same until then.
"""

ASIDE = ("seed", "compare", *FREE)
"""Fields in which runs of one setting may differ."""

CONTENTS = "the contents of config.masks"
"""The name of the digest of the file that a run starts from."""

TEXT = "the contents of config.data.name"
"""The name of the digest of the text that a run reads: another text has other words."""

_OF = {CONTENTS: "config.masks", TEXT: "config.data.name"}


def named_fields(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say what a run computes, as JSON gives them back."""
    nested = config if isinstance(config, Mapping) else config.to_dict()
    plain = flat(json.loads(json.dumps(nested)))
    return {f"config.{k}": v for k, v in plain.items() if not k.startswith(FREE)}


def mesh_fields(config: Config) -> dict[str, Any]:
    """What is free, and yet the same in all processes of a run."""
    return {f"config.mesh.{k}": v for k, v in sorted(config.get("mesh", {}).items())}


def identity_of(config: Config) -> dict[str, Any]:
    """What a run is known by: dotted names with values.

    Args:
      config: of the run. Of a file that is not there any more nothing is known.

    Raises:
      ValueError: if the file that it starts from is damaged, or its text is none.
    """
    masks = config.get("masks")
    known = Path(masks).is_file() if masks else False
    digest = contents_digest(masks) if known else None
    return named_fields(config) | {CONTENTS: digest, TEXT: text_digest(config)}


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first name in which two identities differ, with both values; or ``None``."""
    for name in dict.fromkeys([*new, *old]):
        there, here = old.get(name, "nothing"), new.get(name, "nothing")
        if name in _OF:
            if there != here and not {None, "nothing"} & {there, here}:
                return f"{name} ({new.get(_OF[name])}) are others now"
        elif there != here:
            return f"{name} is {there!r} there and {here!r} here"
    return None
