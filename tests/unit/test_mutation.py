"""The list of changes that may survive names them by what they change, as mutmut prints them."""

from __future__ import annotations

import pytest

from tests.mutation.check import Change, allowed, change_of, function_of, unnoticed

RESULTS = """
    relay.pricing.charge.x_select__mutmut_4: survived
    relay.pricing.charge.x_select__mutmut_5: timeout
    relay.pricing.charge.x_select__mutmut_6: no tests
    relay.pricing.charge.x_select__mutmut_7: not checked
"""
DIFF = """# relay.pricing.charge.x_select__mutmut_4: survived
--- relay/pricing/charge.py
+++ relay/pricing/charge.py
@@ -1,5 +1,5 @@
 def select() -> int:
-    one = 1
-    return one - 1
+    one = 2
+    return one - 2
     # the end
"""


def test_what_no_test_noticed_is_taken_from_the_results() -> None:
    names = [(name.rpartition("_")[2], status) for name, status in unnoticed(RESULTS)]
    assert names == [("4", "survived"), ("6", "no tests"), ("7", "not checked")]


def test_a_change_is_its_function_and_its_lines() -> None:
    change = change_of("relay.pricing.charge.x_select__mutmut_4", DIFF)
    old, new = "one = 1\nreturn one - 1", "one = 2\nreturn one - 2"
    assert change == Change("relay.pricing.charge.select", old, new)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relay.a.x_f__mutmut_12", "relay.a.f"),
        ("relay.a.x__f__mutmut_1", "relay.a._f"),
        ("relay.a.xǁBoxǁ__init____mutmut_1", "relay.a.Box.__init__"),
        ("relay.a.xǁ_Boxǁ_x__mutmut_1", "relay.a._Box._x"),
    ],
)
def test_functions_are_named_as_in_python(name: str, function: str) -> None:
    assert function_of(name) == function


def test_each_change_that_may_survive_has_its_reason() -> None:
    assert allowed()
    for change, reason in allowed().items():
        assert change.old != change.new
        assert reason.endswith(".")
