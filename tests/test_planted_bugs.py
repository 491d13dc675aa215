"""Every planted bug makes its law fail."""

import pytest
from planted_bugs import BUGS, noticed


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_a_law_notices(bug):
    found, output = noticed(bug)
    assert found, output
