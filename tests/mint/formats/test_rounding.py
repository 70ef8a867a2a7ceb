"""The table of roundings: names read back, and matrices learn only where roundings run the model at few bits."""

import pytest

from mint.core.errors import MintError
from mint.formats.rounding import ROUNDINGS, learns, parse_rounding


@pytest.mark.parametrize("name", ROUNDINGS)
def test_a_rounding_reads_back_by_its_name(name: str) -> None:
    assert parse_rounding(name).name == name


def test_an_unknown_rounding_is_refused_with_the_known_ones() -> None:
    with pytest.raises(MintError, match=r"'gptq' is not a rounding; needed one of: nearest, search, compensate"):
        parse_rounding("gptq")


def test_a_rounding_whose_errors_are_measured_is_measured_as_itself() -> None:
    assert [name for name, rounding in ROUNDINGS.items() if rounding.is_measured] == ["nearest", "search"]


@pytest.mark.parametrize("name", ROUNDINGS)
def test_matrices_learn_below_the_size_of_4_bits_where_units_follow_each_other(name: str) -> None:
    rounding = ROUNDINGS[name]
    assert learns(rounding, 4.24) == rounding.sequential
    assert not learns(rounding, 4.25)
