"""Names the options of mint for the words of other tools (mlx_lm.convert, llama-quantize) and of other commands."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise

_COMMANDS = {
    "convert": "`mlx_lm.convert -q` is here: mint quantize MODEL --budget 4.5bpw",
    "help": "needed: mint --help, or mint COMMAND --help",
    **dict.fromkeys(
        ("generate", "chat", "run"), "the result runs in stock mlx_lm: mlx_lm.chat --model OUT, or mlx_lm.generate"
    ),
    "server": "the result runs in stock mlx_lm: mlx_lm.server --model OUT; a lab's service: mint serve",
    "perplexity": "needed: mint evaluate OUT --reference MODEL",
    **dict.fromkeys(("list", "ls"), "needed: mint devices, mint recipes or mint jobs"),
    **dict.fromkeys(("info", "describe"), "needed: mint inspect MODEL, or mint show OUT"),
}
_BITS = "mint mixes formats within one size: --budget 4.5bpw (average bits per weight), or --min-bits and --max-bits"
_GROUP = "group sizes are part of a format: --formats 4@64"
_OUTPUT = "the output is --output OUT"
_MODEL = "the model is the first argument: mint quantize MODEL --budget SIZE"
_NO_DATA = "mint needs no data: --rounding compensate uses text that the model writes"
_OPTIONS = {
    **dict.fromkeys(("--q-bits", "--bits", "--w-bits", "--q-mode", "-q", "--quantize"), _BITS),
    **dict.fromkeys(("--target-bpw", "--bpw"), "needed: --budget 4.5bpw"),
    **dict.fromkeys(("--q-group-size", "--group-size"), _GROUP),
    **dict.fromkeys(("--hf-path", "--hf-repo", "--model-path", "--model", "-m"), _MODEL),
    **dict.fromkeys(("--mlx-path", "--output-dir", "--outfile", "--save-path", "--out"), _OUTPUT),
    "--tensor-type": "needed: --set PATTERN=FORMAT, such as --set '*.down_proj=6/64'",
    **dict.fromkeys(("--imatrix", "--calibration-data"), _NO_DATA),
    "--upload-repo": "needed: --upload OWNER/NAME, or mint upload OUT OWNER/NAME",
    "--size": "needed: --budget SIZE",
    "--overwrite": "needed: --force, which moves the old output aside",
}
_OF_COMMANDS = {
    ("submit", "--low-disk"): "a service downloads a model whole, once for all of its users; on this machine: "
    "mint quantize OWNER/NAME --low-disk --quality fast",
    ("allocate", "--model"): "a plan needs the analysis alone; the model is for mint assemble PLAN --model MODEL",
    ("inspect", "--budget"): "mint inspect shows sizes and needs no budget; for a plan: mint quantize MODEL --budget "
    "SIZE --dry-run, or mint allocate",
}
# by rounding of another tool: the one of mint
_ROUNDINGS = {"rtn": "nearest", "mse": "search", "hqq": "search", "gptq": "compensate", "awq": "compensate",
              "yaqa": "couple", "dwq": "tune"}  # fmt: skip


def hints(arguments: Sequence[str], options: Mapping[str, AbstractSet[str]]) -> list[str]:
    """A sentence for every word of these arguments that another tool or command would take, each once.

    `options` has the options of every command.
    """
    words = [argument.partition("=")[0] for argument in arguments]
    command = next((word for word in words if not word.startswith("-")), "")
    if command not in options:
        return [_COMMANDS.get(command) or f"needed: mint COMMAND, such as {_MODEL.rpartition(': ')[2]}"]
    if not options[command]:  # a command of another package, which has its own
        return []
    unknown = [word for word in words if word.startswith("-") and word not in options[command]]
    sentences = [_of_option(command, word, options) for word in unknown]
    sentences += [
        f"--rounding {mine} is mint's {other.upper()}"
        for other, mine in _ROUNDINGS.items()
        if _is_rounding(arguments, other)
    ]
    return list(dict.fromkeys(filter(None, sentences)))


def _of_option(command: str, word: str, options: Mapping[str, AbstractSet[str]]) -> str:
    """The sentence for an option that a command does not have."""
    if sentence := _OF_COMMANDS.get((command, word)) or _OPTIONS.get(word):
        return sentence
    others = [f"mint {name}" for name, known in options.items() if word in known]
    return f"{word} is an option of {', '.join(others[:3])}" if others else ""


def _is_rounding(arguments: Sequence[str], rounding: str) -> bool:
    return f"--rounding={rounding}" in arguments or ("--rounding", rounding) in pairwise(arguments)
