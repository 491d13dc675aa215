"""Every planted bug makes its law fail: some minutes, with `python -m pytest tests/mutants` alone."""

import pytest

from tests.mutants.planted_bugs import BUGS, noticed, obstacle


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_a_law_notices(bug):
    if why := obstacle(bug):
        pytest.fail(f"cannot be planted: {why}")
    found, output = noticed(bug)
    assert found, output
