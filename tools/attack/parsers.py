"""Every parser of what others wrote: its seeds, the mutation, and the call.

A parser returns or raises `MintError`, in bounded time and memory, whatever the bytes are. A new parser is one row.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mint
from cluster.copies.inventory import Held, Holder, Inventory
from cluster.service.http import schema_requests as schema
from cluster.service.http.downloads import is_single_range
from cluster.service.http.error_answers import ApiError
from cluster.transport.messages import (
    Gathering,
    config_of,
    from_pieces,
    holder_from,
    make_job,
    outlines_of,
    pack,
    source_from,
    tell_job,
    tell_model,
    unpack,
)
from mint.analysis.analysis import MAGIC, measurements_of, read_analysis
from mint.analysis.probes.probe import probe
from mint.analysis.probes.probe_file import read_probes
from mint.analysis.probes.prober import Probing
from mint.analysis.unit_jobs import Measure, Quantize
from mint.client.http import parse_server
from mint.core.errors import MintError
from mint.core.journal import Journal, frame, read_header
from mint.core.records import reading
from mint.core.sizes import parse_budget, parse_size, parse_tokens
from mint.exports.source_card import read_source_card
from mint.formats.format import KEEP, parse_format
from mint.formats.rounding import parse_rounding
from mint.model.checkpoint.manifest import MANIFEST_NAME, PLAN_NAME, read_manifest
from mint.model.checkpoint.shards import INDEX_NAME, read_index, read_shards
from mint.model.checkpoint.sparse_copy import Outline
from mint.model.checkpoint.verified import VERIFIED_NAME, is_verified
from mint.model.config import check_config
from mint.model.gguf.metadata import read_gguf
from mint.model.locate import hub_id
from mint.model.module_tree import processor_fault, tokenizer_fault
from mint.model.source import Source
from mint.plan.plan import read_plan
from mint.plan.recipe import Recipe
from mint.plan.rules import parse_formats, parse_lock, read_locks
from mint.quality.evaluate import evaluate
from mint.quality.reference_file import read_reference
from mint.quality.sequences import plain_text
from mint.quality.tasks import questions_in
from mint.targets.devices import device
from mint.targets.loaders import loader
from tools.attack import hub, mutations, readers
from tools.models.families import write_family

TINY = {"num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 256, "intermediate_size": 128, "head_dim": 16}
HEADER = {"model": "m", "schema": 1}


@dataclass(frozen=True, slots=True)
class Made:
    """A model and everything that MINT wrote about it: the seeds. `scratch` is for mutated files."""

    source: Source
    model: Path
    analysis: Path
    probes: Path
    plan: Path
    output: Path
    reference: Path
    scratch: Path


@dataclass(frozen=True, slots=True)
class Parser:
    """A parser: `read` gets mutated bytes, and may write them into the scratch folder under a name of its own."""

    seeds: Callable[[Made], Iterable[bytes]]
    mutation: Callable[[bytes, random.Random], bytes]
    read: Callable[[Made, bytes], object]


def make(folder: Path) -> Made:
    """Write a tiny model, and let MINT write one of each of its files about it."""
    model = write_family("llama", folder / "model", **TINY)
    source = mint.open_source(model)
    analysis = mint.analyze(source, folder / "a.mint", features=True)
    probe(source, analysis, folder / "a.probe", probing=Probing(sequences=2, length=8))
    plan = mint.allocate(analysis, "6bpw", Recipe(veto_db=-100.0))
    mint.assemble(plan, source, folder / "out")
    mint.verify(folder / "out")
    mint.write_plan(plan, folder / PLAN_NAME)
    evaluate(folder / "out", model, tokens=32, window=8, save_reference=folder / "reference")
    (folder / "scratch").mkdir()
    paths = ("a.mint", "a.probe", PLAN_NAME, "out", "reference", "scratch")
    return Made(source, model, *(folder / name for name in paths))


def _file(path: Callable[[Made], Path]) -> Callable[[Made], list[bytes]]:
    return lambda made: [path(made).read_bytes()]


def _texts(*texts: str) -> Callable[[Made], list[bytes]]:
    return lambda made: [text.encode() for text in texts]


def _at(name: str, read: Callable[[Path], object]) -> Callable[[Made, bytes], object]:
    """Reads the bytes from a file in the scratch folder."""

    def write_and_read(made: Made, text: bytes) -> object:
        path = made.scratch / name
        path.write_bytes(text)
        return read(path)

    return write_and_read


def _word(*reads: Callable[[str], object]) -> Callable[[Made, bytes], object]:
    """Reads a word of the command line by every one of these."""

    def read_all(made: Made, text: bytes) -> None:
        for read in reads:
            try:
                read(text.decode(errors="surrogateescape"))
            except MintError:
                continue

    return read_all


def _in_model(name: str, read: Callable[[Path], object]) -> Callable[[Made, bytes], object]:
    """Reads a model of which one file has other bytes; the rest are links."""

    def write_and_read(made: Made, text: bytes) -> object:
        folder = made.scratch / "model"
        if not folder.exists():
            folder.mkdir()
            for file in made.model.iterdir():
                (folder / file.name).symlink_to(file)
        path = folder / name
        path.unlink(missing_ok=True)
        path.write_bytes(text)
        try:
            return read(folder)
        finally:
            path.unlink()
            if (made.model / name).exists():
                path.symlink_to(made.model / name)

    return write_and_read


def _journal(path: Path) -> None:
    header = read_header(path, MAGIC)
    with Journal(path, MAGIC, header or HEADER) as journal, reading("a damaged journal", "remove it"):
        measurements_of(journal.records)


def _journal_seeds(made: Made) -> list[bytes]:
    return [MAGIC + b"".join(map(frame, [HEADER, {"path": "a", "seconds": 0.5}, {"path": "b"}]))]


def _messages(made: Made) -> list[bytes]:
    held = Held("model.safetensors", 10, "0", "0")
    jobs = Measure("nearest"), Quantize({"up": KEEP}, {"up": "0"}, "nearest")
    holder = Holder(Inventory("node", "", (held,)), "cpu", 10**9, 1, {"mlx": "0"})
    return [
        pack(tell_model(made.source, {"shard": Outline(10, b"header")})),
        *(pack(tell_job(job)) for job in jobs),
        pack(holder),
        pack([["up", "", b"", True]]),
    ]


def _read_message(made: Made, text: bytes) -> None:
    record = unpack(text)
    for read in (
        config_of,
        outlines_of,
        lambda record: source_from(record, made.source.folder),
        lambda record: make_job(record, made.source),
        holder_from,
        lambda record: list(Gathering("node").add(pack(record))),
    ):
        try:
            read(record)
        except MintError:
            continue


def _bodies(made: Made) -> list[bytes]:
    options = {"budgets": ["6bpw", "4GB"], "formats": ["4/64"], "locks": ["*=8/64"], "quality": "fast"}
    return [
        json.dumps({"model": "m", **options}).encode(),
        b'{"state": "cancelled"}',
        b'{"model": "a/b", "options": {}}',
    ]


def _read_body(made: Made, text: bytes) -> None:
    for kind in (schema.Submission, schema.JobChange, schema.FetchRequest, schema.PlanRequest, schema.TicketRequest):
        try:
            kind.model_validate_json(text)
        except (ValueError, MintError):  # pydantic's error is a ValueError; the service answers 422
            continue


def _range(made: Made, text: bytes) -> None:
    try:
        is_single_range(text.decode(errors="surrogateescape"), 1000)
    except ApiError:
        return


def _config_seeds(made: Made) -> list[bytes]:
    config: dict[str, Any] = json.loads((made.model / "config.json").read_text())
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
    packed = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 128}}},
    }  # fmt: skip
    mlx = {"group_size": 64, "bits": 4, "mode": "affine", "model.embed_tokens": {"group_size": 32, "bits": 8}}
    ropes = {
        "rope_scaling": {"type": "yarn", "factor": 2.0},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1.0},
    }
    stored = [{"quantization_config": settings} for settings in (fp8, gptq, packed)]
    more: list[dict[str, Any]] = [{}, *stored, {"quantization": mlx}, ropes]
    return [json.dumps(config | extra).encode() for extra in more]


def _open(folder: Path) -> None:
    check_config(folder)
    mint.open_source(folder)


def _results(made: Made) -> list[bytes]:
    return [pack(measurement.to_record()) for measurement in read_analysis(made.analysis).measurements.values()]


def _read_result(made: Made, text: bytes) -> None:
    from_pieces(Measure("nearest"), made.source.units[0], [text, hashlib.sha256(text).digest()])


_SETTINGS = '[quantize]\nquality = "fast"\ncontext = 5\nforce = true\nformats = ["4/64"]\n[cluster]\n'
_TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": {"content": "</s>"},
    "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}", "model_max_length": 512,
    "added_tokens_decoder": {"0": {"content": "<s>", "special": True}},
}  # fmt: skip
_TASK = '{"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}\n'
_CARD = "---\nlicense: mit\nlanguage: [en]\ntags:\n- a\nbase_model: b/c\n---\n# A model\n"
_SIZES = ("6bpw", "4.5bpw", "6GB", "0.5x", "16GiB", "min", "max", "32k", "60%")
_NAMES = ("4/64", "4@64", "mxfp4", "3,4,8@32,64", "*.v_proj=8/64", "nearest", "m4-16gb", "mlx_lm", "owner/name@main")
PARSERS: dict[str, Parser] = {
    "safetensors": Parser(
        _file(lambda made: made.model / "model.safetensors"),
        mutations.of_safetensors,
        _in_model("model.safetensors", read_shards),
    ),
    "index": Parser(
        _texts('{"metadata": {"total_size": 1}, "weight_map": {"a": "model.safetensors", "b": "x.safetensors"}}'),
        mutations.of_json,
        _in_model(INDEX_NAME, lambda folder: (read_index(folder), read_shards(folder))),
    ),
    "config": Parser(_config_seeds, mutations.of_json, _in_model("config.json", check_config)),
    "source": Parser(_config_seeds, mutations.of_json, _in_model("config.json", _open)),
    "tokenizer": Parser(
        _texts(json.dumps(_TOKENIZER)),
        mutations.of_json,
        _in_model("tokenizer_config.json", lambda folder: (tokenizer_fault(folder), processor_fault(folder))),
    ),
    "card": Parser(_texts(_CARD), mutations.of_bytes, _in_model("README.md", read_source_card)),
    "analysis": Parser(_file(lambda made: made.analysis), mutations.of_sealed, _at("a.mint", read_analysis)),
    "probes": Parser(_file(lambda made: made.probes), mutations.of_sealed, _at("a.probe", read_probes)),
    "journal": Parser(_journal_seeds, mutations.of_sealed, _at("a.mint.partial", _journal)),
    "plan": Parser(_file(lambda made: made.plan), mutations.of_json, _at(PLAN_NAME, read_plan)),
    "manifest": Parser(
        _file(lambda made: made.output / MANIFEST_NAME),
        mutations.of_json,
        _at(MANIFEST_NAME, lambda path: read_manifest(path.parent)),
    ),
    "verified": Parser(
        _file(lambda made: made.output / VERIFIED_NAME),
        mutations.of_json,
        _at(VERIFIED_NAME, lambda path: is_verified(path.parent)),
    ),
    "reference": Parser(_file(lambda made: made.reference), mutations.of_safetensors, _at("reference", read_reference)),
    "locks": Parser(
        _texts('{"*.k_proj": "8/32", "lm_head": "keep"}'), mutations.of_json, _at("locks.json", read_locks)
    ),
    "tasks": Parser(_texts(_TASK * 2), mutations.of_bytes, _at("tasks", lambda path: questions_in(path))),
    "text": Parser(_texts("a text\r\nof lines\n"), mutations.of_bytes, _at("text", plain_text)),
    "settings": Parser(
        _texts(_SETTINGS), mutations.of_bytes, lambda made, text: readers.read_settings(made.scratch, text)
    ),
    "gguf": Parser(
        lambda made: [readers.gguf_file(made.scratch / "seed.gguf")],
        mutations.of_bytes,
        _at("m.gguf", lambda path: read_gguf([path])),
    ),
    "gguf values": Parser(
        _texts(json.dumps(readers.GGUF_VALUES)), mutations.of_json, lambda made, text: readers.read_values(text)
    ),
    "answers": Parser(lambda made: [readers.answer()], mutations.of_json, lambda made, text: readers.read_answer(text)),
    "events": Parser(
        _texts('{"id": "1", "event": "state", "data": "{}"}'),
        mutations.of_json,
        lambda made, text: readers.read_event(text),
    ),
    "results": Parser(_results, mutations.of_msgpack, _read_result),
    "sizes": Parser(_texts(*_SIZES), mutations.of_words, _word(parse_budget, parse_size, parse_tokens)),
    "names": Parser(
        _texts(*_NAMES),
        mutations.of_words,
        _word(parse_format, lambda word: parse_formats([word]), parse_lock, parse_rounding, device, loader, hub_id),
    ),
    "server": Parser(
        _texts("http://lab:8420", "lab:8420", "https://[::1]:1/"), mutations.of_words, _word(parse_server)
    ),
    "messages": Parser(_messages, mutations.of_msgpack, _read_message),
    "hub": Parser(
        lambda made: [hub.hub_answers()], mutations.of_json, lambda made, text: hub.read_hub(made.scratch, text)
    ),
    "bodies": Parser(_bodies, mutations.of_json, _read_body),
    "range": Parser(_texts("bytes=0-99", "bytes=-5", "bytes=5-"), mutations.of_words, _range),
}
