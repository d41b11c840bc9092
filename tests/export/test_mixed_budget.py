"""Types within a size: never more bytes, and as good as trying everything."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mofang.export.mixed import budget
from mofang.export.mixed.budget import Option

OPTION = st.tuples(st.integers(1, 60), st.floats(0, 10, allow_subnormal=False))
TABLES = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=5)


def table_of(rows: list[list[tuple[int, float]]]) -> dict[str, list[Option]]:
    return {
        str(number): [Option(str(n), size, loss) for n, (size, loss) in enumerate(row)]
        for number, row in enumerate(rows)
    }


@given(TABLES, st.floats(0, 1))
def test_the_choice_fits_and_is_best_up_to_one_matrix(rows: list[list[tuple[int, float]]], share: float) -> None:
    table = table_of(rows)
    low, high = budget.bounds(table)
    allowed = int(low + share * (high - low))
    chosen = budget.choose(table, allowed)
    assert set(chosen) == set(table) and budget.size(chosen) <= allowed
    every = [sum(option.loss for option in one) for one in product(*table.values())
             if sum(option.n_bytes for option in one) <= allowed]  # fmt: skip
    most_of_one = max(max(o.loss for o in options) - min(o.loss for o in options) for options in table.values())
    assert budget.loss(chosen) <= min(every) + most_of_one + 1e-9


def test_what_matters_gets_the_bytes() -> None:
    table = {
        "dear": [Option("Q4_0", 4, 1.0), Option("Q8_0", 8, 0.0)],
        "cheap": [Option("Q4_0", 4, 0.1), Option("Q8_0", 8, 0.0)],
    }
    assert {name: option.type for name, option in budget.choose(table, 12).items()} == {"dear": "Q8_0", "cheap": "Q4_0"}
    assert {option.type for option in budget.choose(table, 100).values()} == {"Q8_0"}
    with pytest.raises(ValueError, match="at least 8"):
        budget.choose(table, 7)
