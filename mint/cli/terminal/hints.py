"""Names the options of mint for the words of other tools (mlx_lm.convert, llama-quantize) and other commands."""

from collections.abc import Sequence

_COMMANDS = {
    "convert": "`mlx_lm.convert -q` is here: mint quantize MODEL --budget 4.5bpw",
    "help": "needed: mint --help, or mint COMMAND --help",
    "generate": "the result runs in stock mlx_lm: mlx_lm.generate --model OUT --prompt TEXT",
    "chat": "the result runs in stock mlx_lm: mlx_lm.chat --model OUT",
    "server": "the result runs in stock mlx_lm: mlx_lm.server --model OUT; a lab's service: mint serve",
    "perplexity": "needed: mint evaluate OUT --reference MODEL",
}
_BITS = "mint mixes formats within one size: --budget 4.5bpw (average bits per weight), or --min-bits and --max-bits"
_GROUP = "group sizes are part of a format: --formats 4@64"
_OUTPUT = "the output is --output OUT"
_MODEL = "the model is the first argument: mint {command} MODEL"
_OPTIONS = {
    **dict.fromkeys(("--q-bits", "--bits", "--w-bits", "--q-mode", "-q", "--quantize"), _BITS),
    **dict.fromkeys(("--target-bpw", "--bpw"), "needed: --budget 4.5bpw"),
    **dict.fromkeys(("--q-group-size", "--group-size"), _GROUP),
    **dict.fromkeys(("--hf-path", "--hf-repo", "--model-path", "--model", "-m"), _MODEL),
    **dict.fromkeys(("--mlx-path", "--output-dir", "--outfile", "--save-path", "--out"), _OUTPUT),
    "--tensor-type": "needed: --set PATTERN=FORMAT, such as --set '*.down_proj=6/64'",
    "--imatrix": "mint needs no data: --rounding compensate uses text that the model writes",
    "--calibration-data": "mint needs no data: --rounding compensate uses text that the model writes",
    "--upload-repo": "needed: --upload OWNER/NAME, or mint upload OUT OWNER/NAME",
    "--size": "needed: --budget SIZE",
    "--overwrite": "needed: --force, which moves the old output aside",
}
_OF_COMMANDS = {
    ("submit", "--low-disk"): "a service downloads a model whole, once for all of its users; on this machine: "
    "mint quantize OWNER/NAME --low-disk --quality fast",
}


def hints(arguments: Sequence[str]) -> list[str]:
    """A sentence for every word of these arguments that another tool would take, each once."""
    words = [argument.partition("=")[0] for argument in arguments]
    command = next((word for word in words if not word.startswith("-")), "")
    if command in _COMMANDS:
        return [_COMMANDS[command]]
    known = (_OF_COMMANDS.get((command, word)) or _OPTIONS.get(word, "").format(command=command) for word in words)
    sentences = [text for text in known if text]
    return list(dict.fromkeys(sentences))
