"""Studies: their runs, the phase 1 that arms share, the table and the page."""

import json

import numpy as np
import pandas as pd
import pytest

from experiments import study as command
from experiments.reports import study as reports
from experiments.studies.values import Arm, Cell, Study


def test_the_given_studies_are_whole(tmp_path):
    names = command.study_names()
    assert "claim" in names
    for name in names:
        study = command.read_study(name)
        source = command.read_source(study.config)
        for seed, cell in command.units(study):
            if seed == study.seeds[0]:
                found = command.members(study, seed, cell, tmp_path, source=source)
                assert len({member.name for member in found}) == len(study.arms)
