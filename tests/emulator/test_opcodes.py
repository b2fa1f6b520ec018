"""Every operation of the table, one by one, against values that other code computed."""

from __future__ import annotations

import pytest

from tests.emulator import (
    cases_compare,
    cases_convert,
    cases_float,
    cases_half,
    cases_integer,
    cases_memory,
)
from tests.emulator.harness import Case, check_case

MODULES = (cases_compare, cases_convert, cases_float, cases_half, cases_integer, cases_memory)
CASES = [case for module in MODULES for case in module.cases()]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operation(case: Case) -> None:
    check_case(case)
