"""The training forward and every loss of Focal-T v1 against the release (../shared/parity, losses):
values of each layer, matching, the points used and gradients, with the release's own draws."""

import pytest

from tests.parity_support import check_stage


@pytest.mark.slow
def test_the_losses_are_the_official_ones():
    check_stage("losses")
