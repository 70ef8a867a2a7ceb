import random

import pytest

from mint.core.errors import MintError
from mint.core.sizes import enough_size, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("90MB", 90_000_000),
        ("16.5GiB", 17_716_740_096),
        ("16.5 GiB", 17_716_740_096),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("1B", 1),
        ("2gb", 2_000_000_000),
        ("0.3GB", 300_000_000),
        ("1_000B", 1000),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("90", "has no unit.*90GB"),
        ("90XB", "unknown unit"),
        ("", "is not a size"),
        ("-3GB", "is not a size"),
        ("1.2.3GB", "is not a size"),
        ("GB", "is not a size"),
        ("0GB", "above zero"),
    ],
)
def test_anything_else_is_refused_with_what_is_needed(text: str, complaint: str) -> None:
    with pytest.raises(MintError, match=complaint):
        parse_size(text)


def test_sizes_are_shown_in_powers_of_1000() -> None:
    assert [format_size(n) for n in (999, 90_000_000, 17_716_740_096)] == ["999 B", "90 MB", "17.72 GB"]


def test_a_size_that_is_enough_is_enough_when_it_is_read_back() -> None:
    rng = random.Random(0)
    for nbytes in [
        1,
        999,
        1000,
        1001,
        70_513_001,
        999_999,
        10**15,
        *(int(10 ** rng.uniform(0, 14)) for _ in range(999)),
    ]:
        assert nbytes <= parse_size(enough_size(nbytes)) <= nbytes * 1.001 + 1
    assert enough_size(70_513_001) == "70.52 MB"
    assert enough_size(90_000_000) == "90 MB"
