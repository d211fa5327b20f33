"""Focal-T v1 against every stored number of the official release (../shared/parity), stage by stage."""

import pytest

from tests.parity_support import check_stage


@pytest.mark.parametrize("stage", ["seg", "grounding", "spatial"])
def test_the_decoder_is_the_official_one(stage):
    check_stage(stage)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["iterative", "postprocess"])
def test_rounds_and_results_are_the_official_ones(stage):
    check_stage(stage)
