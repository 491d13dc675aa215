"""Every planted bug makes its law fail; that takes some minutes, so only with `python dev.py test -m planted`."""

import pytest
from planted_bugs import BUGS, ROOT, laws, noticed

pytestmark = pytest.mark.planted
each_bug = pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))


@each_bug
def test_it_can_still_be_planted(bug):
    assert (ROOT / "subspace" / bug.file).read_text().count(bug.right) == 1
    assert bug.law in laws(ROOT, bug).read_text()


@each_bug
def test_a_law_notices(bug):
    found, output = noticed(bug)
    assert found, output
