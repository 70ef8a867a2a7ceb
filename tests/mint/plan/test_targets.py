"""The tables of devices, loaders and speeds. They are data with sources, so the tests are laws over their rows."""

import re
import subprocess
import sys
from itertools import combinations, groupby, pairwise

import mlx.core as mx
import pytest

from mint.core.errors import MintError
from mint.formats.format import FORMATS, KEEP, Format, parse_format
from mint.formats.scheme import SCHEMES
from mint.targets.devices import GIB, device, devices, mac_working_set, table, this_device
from mint.targets.loaders import CURRENT, Loader, compatible_formats, loader, loaders
from mint.targets.speed import bytes_per_token, decode_cost

SOURCE = re.compile(r"https://\S+\.\S+|[\w.-]+/[\w.-]+#\d+|estimate|by definition")
SOURCES = sorted(
    {row.source for row in devices()}
    | {source for *_, source in table()["working_sets"]}
    | {row.source for row in loaders()}
    | {row.source for scheme in SCHEMES.values() for row in scheme.read_factors}
)
SEED_DEVICES = (
    "m4-16", "m4-32", "m4-pro-24", "m4-pro-48", "m4-max-36", "m4-max-64", "m4-max-128",
    "m2-ultra-128", "m2-ultra-192", "m3-ultra-96", "m3-ultra-512", "m4-ultra-512",
    "iphone-16-pro", "rtx-4070", "rtx-4090",
)  # fmt: skip
SHAPE = (4096, 4096)
STACK = (128, 768, 2048)


def _families() -> dict[str, list[Loader]]:
    """Loader generations by family, in the order of the table; a name is `family-release`."""
    named = [row for row in loaders() if row.name != CURRENT]
    return {name: list(rows) for name, rows in groupby(named, key=lambda row: re.split(r"-\d", row.name)[0])}


# --- devices


def test_names_of_devices_are_unique() -> None:
    assert len({row.name for row in devices()}) == len(devices())


@pytest.mark.parametrize("source", SOURCES)
def test_every_row_has_a_source_or_is_an_estimate(source: str) -> None:
    assert SOURCE.search(source)


def test_the_working_set_is_never_above_the_memory() -> None:
    assert all(0 < row.working_set_bytes < row.memory_bytes for row in devices())


def test_every_device_of_the_published_guide_is_there() -> None:
    assert {device(name).name for name in SEED_DEVICES} == set(SEED_DEVICES)


def test_more_memory_never_means_a_smaller_working_set_within_a_chip() -> None:
    for one, other in combinations(devices(), 2):
        if one.chip == other.chip and one.memory_bytes < other.memory_bytes:
            assert one.working_set_bytes < other.working_set_bytes


def test_no_chip_is_listed_twice_with_the_same_memory() -> None:
    sizes = [(row.chip, row.memory_bytes) for row in devices()]
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize(
    ("gib", "mib"), [(16, 10922), (32, 21845), (36, 27648), (64, 49152), (96, 73728), (128, 98304), (192, 147456)]
)
def test_the_working_set_of_a_mac_matches_user_reports(gib: int, mib: int) -> None:
    assert mac_working_set(gib * GIB) // 2**20 == mib


def test_a_mac_of_24_gb_has_binary_gigabytes() -> None:
    assert device("m4-pro-24").memory_bytes == 24 * 2**30


def test_an_unannounced_device_is_marked() -> None:
    assert "not announced" in device("m4-ultra-512").source


@pytest.mark.parametrize(
    ("name", "closest"), [("m4pro-24", "m4-pro-24"), ("M4 Max 64", "m4-max-64"), ("rtx4090", "rtx-4090")]
)
def test_an_unknown_device_gets_the_closest_names_and_the_list(name: str, closest: str) -> None:
    with pytest.raises(MintError, match=rf"{name}.*{closest}.*mint devices"):
        device(name)


def test_a_device_like_no_other_gets_the_list() -> None:
    with pytest.raises(
        MintError, match="is not a known device; needed a name such as m4-pro-24; `mint devices` lists all"
    ):
        device("abacus")


# --- this machine: Linux without a GPU has no Metal or CUDA report, so the tests supply one


def _reports(monkeypatch: pytest.MonkeyPatch, report: dict[str, str | int]) -> None:
    monkeypatch.setattr(mx, "device_info", lambda _: report)


def test_this_device_is_read_from_the_report_of_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    report: dict[str, str | int] = {
        "device_name": "Apple M4 Max",
        "architecture": "applegpu_g16s",
        "max_buffer_length": 86 * GIB,
        "max_recommended_working_set_size": 107 * GIB,
        "memory_size": 128 * GIB,
        "resource_limit": 499000,
    }
    _reports(monkeypatch, report)
    here = device("this")
    assert (here.name, here.chip) == ("this", "M4 Max")
    assert (here.memory_bytes, here.working_set_bytes) == (128 * GIB, 107 * GIB)
    assert here.gb_per_second == device("m4-max-128").gb_per_second


def test_the_bandwidth_of_this_device_depends_on_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    report: dict[str, str | int] = {
        "device_name": "Apple M4 Max",
        "max_recommended_working_set_size": 27 * GIB,
        "memory_size": 36 * GIB,
    }
    _reports(monkeypatch, report)
    assert this_device().gb_per_second == 410


def test_the_bandwidth_of_a_chip_that_is_not_in_the_table_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    report: dict[str, str | int] = {
        "device_name": "Apple M99",
        "max_recommended_working_set_size": 3 * GIB,
        "memory_size": 4 * GIB,
    }
    _reports(monkeypatch, report)
    assert this_device().gb_per_second == 0.0


def test_this_device_with_cuda_is_its_total_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    total = 25_757_220_864  # the report of a card is a little below its nominal 24 GiB
    _reports(monkeypatch, {"device_name": "NVIDIA GeForce RTX 4090", "total_memory": total, "free_memory": total})
    here = this_device()
    assert here.memory_bytes == total
    assert here.working_set_bytes == total * 95 // 100
    assert here.gb_per_second == device("rtx-4090").gb_per_second


def test_on_a_machine_without_a_gpu_the_error_asks_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    _reports(monkeypatch, {})
    with pytest.raises(MintError, match=r"device this needs Apple silicon or MLX CUDA.*mint devices"):
        this_device()


# --- loaders


def test_names_of_loaders_are_unique() -> None:
    assert len({row.name for row in loaders()}) == len(loaders())


@pytest.mark.parametrize("row", loaders(), ids=lambda row: row.name)
def test_a_loader_reads_known_formats_and_unquantized_weights(row: Loader) -> None:
    assert set(row.formats) <= set(FORMATS)
    assert len(set(row.formats)) == len(row.formats)
    assert KEEP in compatible_formats(row.name)


@pytest.mark.parametrize("family", _families().values(), ids=_families())
def test_newer_generations_of_a_loader_only_gain(family: list[Loader]) -> None:
    for older, newer in pairwise(family):
        assert older.released < newer.released
        assert set(older.formats) <= set(newer.formats)
        assert older.mixed <= newer.mixed
        assert (older.formats, older.mixed) != (newer.formats, newer.mixed)


def test_there_are_three_families_of_loaders() -> None:
    assert set(_families()) == {"mlx", "mlx-swift-lm", "lm-studio"}


def test_the_current_loader_reads_everything() -> None:
    current = loader(CURRENT)
    assert compatible_formats(CURRENT) == FORMATS
    assert current.mixed


@pytest.mark.parametrize(
    ("format", "since"), [("3/64", "0.21.0"), ("6/32", "0.21.0"), ("5/64", "0.26.0"), ("mxfp4", "0.29.0")]
)
def test_a_format_arrives_with_its_release_of_mlx(format: str, since: str) -> None:
    first = next(row for row in _families()["mlx"] if parse_format(format) in row.formats)
    assert first.name == f"mlx-{since}"


def test_an_unknown_loader_gets_the_list() -> None:
    with pytest.raises(MintError, match=r"'mlx-9'.*current.*mlx-0\.26\.0.*lm-studio-2025-06"):
        compatible_formats("mlx-9")


# --- speed


def test_every_format_has_one_read_factor() -> None:
    keys = [(scheme.mode, row.bits) for scheme in SCHEMES.values() for row in scheme.read_factors]
    assert len(set(keys)) == len(keys)
    assert set(keys) == {(format.mode, format.bits) for format in FORMATS}


def test_four_bits_in_groups_of_64_cost_their_bytes() -> None:
    format = parse_format("4/64")
    assert decode_cost(format, SHAPE, "BF16") == format.nbytes(SHAPE, "BF16")


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_fewer_bits_never_cost_more_to_read_for_widths_that_are_powers_of_two(group_size: int) -> None:
    costs = [decode_cost(Format("affine", bits, group_size), SHAPE, "BF16") for bits in (2, 4, 8)]
    assert costs == sorted(costs)


def test_every_quantized_format_is_read_faster_than_the_unquantized_weight() -> None:
    keep = decode_cost(KEEP, SHAPE, "BF16")
    assert all(decode_cost(format, SHAPE, "BF16") < keep for format in FORMATS if format != KEEP)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_larger_groups_are_never_slower(bits: int) -> None:
    costs = [decode_cost(Format("affine", bits, group), SHAPE, "BF16") for group in (128, 64, 32)]
    assert costs == sorted(costs)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_the_active_share_of_a_stack_scales_its_cost(format: Format) -> None:
    whole = decode_cost(format, STACK, "BF16")
    assert decode_cost(format, STACK, "BF16", active=8 / 128) == pytest.approx(whole * 8 / 128)
    assert bytes_per_token(format, STACK, "BF16", active=0.5) * 2 == format.nbytes(STACK, "BF16")


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_looking_a_token_up_reads_one_row(format: Format) -> None:
    rows, columns = SHAPE
    assert bytes_per_token(format, SHAPE, "BF16", active=1 / rows) == format.nbytes((1, columns), "BF16")
    assert decode_cost(format, SHAPE, "BF16", active=1 / rows) * rows == pytest.approx(
        decode_cost(format, SHAPE, "BF16")
    )


# --- all three


def test_the_tables_load_without_mlx_and_numpy() -> None:
    code = (
        "import sys, mint.targets.devices, mint.targets.loaders, mint.targets.speed;"
        "print([p for p in ('mlx', 'mlx_lm', 'numpy', 'numba', 'ray') if p in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
