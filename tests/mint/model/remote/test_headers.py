"""The headers of a model of the hub: enough to open it, and all that is downloaded."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import mint
from mint.cli.main import run_command
from mint.core.errors import MintError
from mint.model.checkpoint.shards import read_header
from mint.model.hub_cache import HubId, NotOnHubError
from mint.model.hub_download import explained
from mint.model.locate import locate
from mint.model.remote.headers import headers_of
from mint.model.remote.ranges import HubFile
from mint.model.source import Source
from tests.worlds.encodings import Encoding, bnb_4bit, packed, write_encoded
from tests.worlds.hub_world import FakeHub, fake_hub, know
from tests.worlds.zoo import write_model

ID = "Owner/tiny-llama"
MATRICES = r"(self_attn|mlp)\..*_proj\.weight$"


@pytest.fixture
def hub(big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as hub:
        hub.add(ID, big)
        know(hub, tmp_path / "hub", monkeypatch)
        yield hub


def _opened(source: Source) -> Source:
    """A source without what its folder and its samples make of it."""
    shards = tuple(replace(shard, sample_digest="") for shard in source.shards)
    return replace(source, identity="", folder=Path(), shards=shards)


def _headers_nbytes(folder: Path) -> int:
    return sum(8 + len(read_header(path)[0]) for path in folder.glob("*.safetensors"))


def test_a_model_of_the_hub_opens_by_its_headers_and_no_weight_is_downloaded(hub: FakeHub, big: Path) -> None:
    whole = mint.open_source(big)
    with headers_of(ID) as source:
        assert _opened(source) == _opened(whole)
        assert not source.identity
    assert sum(request.nbytes for request in hub.sent(".safetensors")) == _headers_nbytes(big)


def test_headers_come_from_another_host_which_never_sees_the_token(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.is_redirecting = True
    with headers_of(ID) as source:
        assert source.units
    assert {request.token for request in hub.sent(".safetensors")} == {""}
    assert "Bearer hf_mine" in hub.tokens


def test_a_busy_hub_is_asked_again_and_a_cut_connection_made_again(hub: FakeHub) -> None:
    hub.busy = 2
    hub.breaks["model-00002-of-00003.safetensors"] = 3
    with headers_of(ID) as source:
        assert source.units


def test_a_connection_that_always_breaks_ends_with_the_remedy(hub: FakeHub) -> None:
    class Always(dict[str, int]):
        def pop(self, name: str, *default: object) -> int:
            return 0

    hub.breaks = Always()
    file = HubFile(HubId(ID), hub.commit(ID), "model-00001-of-00003.safetensors")
    with pytest.raises(NotOnHubError, match=r"does not answer .*run the same command again"), explained(HubId(ID)):
        file.read(0, 8)


def test_a_hub_that_sends_ranges_without_a_byte_is_asked_a_few_times(hub: FakeHub) -> None:
    hub.is_mute = True
    file = HubFile(HubId(ID), hub.commit(ID), "model-00001-of-00003.safetensors")
    with pytest.raises(MintError, match=r"sends no byte of model-00001-of-00003\.safetensors from 0 on; check"):
        file.read(0, 8)
    assert len(hub.sent("model-00001-of-00003.safetensors")) == 6


def test_a_hub_that_sends_no_ranges_is_named_and_not_read(hub: FakeHub) -> None:
    hub.knows_ranges = False
    with (
        pytest.raises(MintError, match=r"answers a request for 8 bytes .*needed: a hub that sends ranges"),
        headers_of(ID),
    ):
        pass


def test_refusals_have_their_remedies_before_a_header_is_asked_for(hub: FakeHub) -> None:
    hub.gated.add(ID)
    with pytest.raises(MintError, match="accept its terms"), headers_of(ID):
        pass
    hub.refused[ID] = (401, "")
    with (
        pytest.raises(NotOnHubError, match=r"no such folder, .*knows no model Owner/tiny-llama; .*hf auth login"),
        headers_of(ID),
    ):
        pass
    assert not hub.sent(".safetensors")


def test_shards_of_the_cache_are_not_asked_for_again(hub: FakeHub) -> None:
    folder = locate(ID)
    name = "model-00002-of-00003.safetensors"
    (folder / name).resolve().unlink()
    (folder / name).unlink()
    hub.asked.clear()
    with headers_of(ID) as source:
        assert source.units
    assert {request.name for request in hub.sent(".safetensors")} == {name}


@pytest.mark.parametrize("encoding", [packed(), bnb_4bit()])
def test_weights_whose_storage_is_told_by_tensors_open_too(hub: FakeHub, tmp_path: Path, encoding: Encoding) -> None:
    folder = write_model("llama", tmp_path / "model")
    write_encoded(folder, MATRICES, encoding, {"quantization_config": {"quant_method": "of the test"}})
    hub.add(ID, folder)
    with headers_of(ID) as source:
        assert _opened(source) == _opened(mint.open_source(folder))


def test_inspect_shows_what_fits_a_device_with_which_context(
    hub: FakeHub, big: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fits(model: str, *options: str) -> list[dict[str, object]]:
        assert run_command(["inspect", model, "--device", "m4-16", *options, "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["model"] == model
        rows: list[dict[str, object]] = record["fits"]
        return rows

    rows = fits(ID)
    assert rows == fits(str(big))
    sizes = [row["nbytes"] for row in rows]
    assert [row["formats"] for row in rows] == ["smallest", "4/64", "5/64", "6/64", "8/64", "largest"]
    assert sizes == sorted(sizes, key=int)  # type: ignore[arg-type]
    contexts = [row["longest_context"] for row in rows]
    assert contexts == sorted(contexts, key=int, reverse=True)  # type: ignore[arg-type]
    assert {row["verdict"] for row in rows} == {"fits"}
    assert {row["verdict"] for row in fits(ID, "--reserve", "100GB")} == {"too large"}
