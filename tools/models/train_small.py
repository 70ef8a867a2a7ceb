"""Trains a small model on plain text: real weights, of a structure that no package has.

    python -m tools.models.make_text TEXT
    python -m tools.models.train_small TEXT OUT --kind mixture --minutes 120

| kind | class | weights |
|---|---|---|
| `mixture` | qwen3_moe: 16 experts of 256 neurons, 2 of them for a token, in 8 layers of 256 channels | 28 million |
| `post-norm` | gemma3_text: norms before and after attention and neurons, in 8 layers of 384 channels | 21 million |

Models are bf16. A byte-level BPE tokenizer of 4,096 tokens is trained first. One novel and the last tenth of every
other text are held out; their perplexity is printed and goes into `training.json`. State is saved every minute, and
the same command goes on from there. The seed decides order and first weights; sums of threads differ in the last bits,
so two machines end with two models of about the same perplexity.

While a mixture trains, every expert takes at most 1.25 times its even share of the tokens of a batch (Switch
Transformer, arXiv:2101.03961, with its loss for balance), since MLX multiplies gathered matrices slowly on CPUs. The
written model is the stock class without that limit.
"""

# B sequences, S tokens of one, T = B S tokens, D channels, E experts, K experts of a token, C slots of an expert

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.models import gemma3_text, qwen3_moe
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mint.core.errors import MintError
from tools.models.make_smollm2 import say

BEGIN, VOCABULARY = "<|begin|>", 4096
_COMMON = {
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
}
_MIXTURE = _COMMON | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
_POST_NORM = _COMMON | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "query_pre_attn_scalar": 64,
    "sliding_window": 512,
    "sliding_window_pattern": 4,
    "rope_local_base_freq": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A structure to train."""

    config: dict[str, Any]
    classes: Any  # the module of mlx_lm
    norm: float  # the weight of a norm that changes nothing

    @property
    def is_mixture(self) -> bool:
        return "num_experts" in self.config


KINDS = {"mixture": Kind(_MIXTURE, qwen3_moe, 1.0), "post-norm": Kind(_POST_NORM, gemma3_text, 0.0)}
BALANCE = 0.01  # weight of the loss for balance
SAVED_EVERY = 60  # seconds of work


@dataclass(frozen=True, slots=True)
class Course:
    """The course of the training: numbers that decide its result."""

    sequences: int = 8  # in a batch
    window: int = 256  # tokens of a sequence
    rate: float = 2e-3
    warmup: int = 50  # steps
    decay: float = 0.1  # AdamW's, of matrices
    seed: int = 0


class LimitedBlock(qwen3_moe.Qwen3MoeSparseMoeBlock):  # type: ignore[misc]  # mlx_lm has no types
    """A block of experts that works on C slots an expert, in batched products, and adds its loss for balance."""

    losses: ClassVar[list[mx.array]] = []  # of the blocks of one pass
    slack: ClassVar[float] = 1.25  # slots of an expert, relative to its even share

    def __call__(self, x: mx.array) -> mx.array:
        shape, x = x.shape, x.reshape(-1, x.shape[-1])
        tokens, experts, chosen = len(x), self.num_experts, self.top_k
        odds = mx.softmax(self.gate(x), axis=-1, precise=True)
        indices = mx.stop_gradient(mx.argpartition(odds, kth=-chosen, axis=-1)[:, -chosen:])
        scores = mx.take_along_axis(odds, indices, axis=-1)
        scores = scores / scores.sum(axis=-1, keepdims=True)
        pairs = (indices.reshape(-1, 1) == mx.arange(experts)).astype(mx.int32)  # (T K, E)
        shares = pairs.astype(mx.float32).mean(axis=0)
        self.losses.append(experts * mx.sum(odds.mean(axis=0) * shares))
        slots = math.ceil(self.slack * tokens * chosen / experts)
        place = (mx.cumsum(pairs, axis=0) * pairs).sum(axis=1) - 1
        slot = mx.where(place < slots, indices.reshape(-1) * slots + place, experts * slots)
        source = mx.zeros(experts * slots + 1, mx.int32)
        source[slot] = mx.arange(tokens * chosen) // chosen
        y = self._experts(x[mx.stop_gradient(source)[:-1]].reshape(experts, slots, -1))
        y = mx.concatenate([y.reshape(experts * slots, -1), mx.zeros((1, y.shape[-1]))])
        y = y[slot].reshape(tokens, chosen, -1) * scores[..., None]
        return y.sum(axis=1).reshape(shape)

    def _experts(self, x: mx.array) -> mx.array:
        gate, up, down = (
            self.switch_mlp[name].weight.swapaxes(-1, -2) for name in ("gate_proj", "up_proj", "down_proj")
        )
        hidden: mx.array = x @ gate
        answer: mx.array = hidden * mx.sigmoid(hidden) * (x @ up) @ down
        return answer


def make_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer of `VOCABULARY` tokens, of which the first begins every sequence."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BEGIN], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def split(folder: Path) -> tuple[list[str], list[str]]:
    """Texts to train on and held-out ones: one novel, and the last tenth of every other file."""
    files = sorted(folder.glob("*.txt"))
    if len(files) < 2:
        raise MintError(f"{folder} has {len(files)} text files, needed at least 2; see tools.models.make_text")
    texts = [file.read_text() for file in files]
    held = max(range(len(files) - 1), key=lambda index: files[index].name)
    rest = [text for index, text in enumerate(texts) if index != held]
    return [text[: len(text) * 9 // 10] for text in rest], [
        texts[held],
        *(text[len(text) * 9 // 10 :] for text in rest),
    ]


def windows(texts: list[str], tokenizer: Tokenizer, window: int) -> NDArray[np.int32]:
    """Sequences (N, window + 1): the first token, then text."""
    rows = []
    for text in texts:
        ids = np.array(tokenizer.encode(text).ids, np.int32)
        body = ids[: len(ids) // window * window].reshape(-1, window)
        rows.append(np.concatenate([np.zeros((len(body), 1), np.int32), body], axis=1))
    return np.concatenate(rows)


def first_model(kind: Kind, seed: int) -> Any:
    """The model with random weights of standard deviation 0.04, of the embedding 0.02, smaller at residuals."""
    mx.random.seed(seed)
    classes, config = kind.classes, kind.config
    model = classes.Model(classes.ModelArgs.from_dict(config))
    if "lm_head" in model:  # the class drops it when it loads a model without one
        model.sanitize({})
    layers = 2 * config["num_hidden_layers"]

    def drawn(name: str, weight: mx.array) -> mx.array:
        if weight.ndim < 2:
            return mx.full(weight.shape, kind.norm)
        spread = 0.02 / math.sqrt(layers) if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        return mx.random.normal(weight.shape) * (spread if "embed" in name else spread * 2)

    model.update(tree_unflatten([(name, drawn(name, weight)) for name, weight in _flat(model.parameters())]))
    return model


def _flat(tree: Any) -> list[tuple[str, mx.array]]:
    """The arrays of a tree by their paths."""
    flat: Any = tree_flatten(tree)
    return [(name, array) for name, array in flat if isinstance(array, mx.array)]


def perplexity(model: Any, rows: NDArray[np.int32]) -> float:
    """The perplexity of held-out rows under the model as it is."""
    losses = []
    for start in range(0, len(rows), 8):
        tokens = mx.array(rows[start : start + 8])
        losses.append(nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).mean(axis=1))
        mx.eval(losses[-1])
    return math.exp(np.concatenate([np.array(loss) for loss in losses]).mean())


def train(
    model: Any, kind: Kind, rows: NDArray[np.int32], held: NDArray[np.int32], out: Path, course: Course, minutes: float
) -> None:
    """Train `model` until the minutes of work are over, going on from a state in `out`; the rate falls to zero."""
    for layer in model.layers if kind.is_mixture else ():
        layer.mlp.__class__ = LimitedBlock
    optimizer = optim.AdamW(learning_rate=course.rate, betas=[0.9, 0.95], weight_decay=course.decay)
    optimizer.init(model.trainable_parameters())
    step, worked = _resumed(model, optimizer, out)
    saved = worked

    def loss(tokens: mx.array) -> mx.array:
        LimitedBlock.losses.clear()
        words = nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], reduction="mean")
        return words + BALANCE * mx.stack(LimitedBlock.losses).sum() if kind.is_mixture else words

    gradients_of = value_and_grad(model, loss)
    while worked < 60 * minutes:
        began = time.perf_counter()
        epoch, place = divmod(step * course.sequences, len(rows) // course.sequences * course.sequences)
        order = np.random.default_rng([course.seed, epoch]).permutation(len(rows))
        batch = mx.array(rows[order[place : place + course.sequences]])
        share = worked / (60 * minutes)
        optimizer.learning_rate = course.rate * min(1, (step + 1) / course.warmup) * (1 - share)
        value, gradients = gradients_of(batch)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        mx.eval(value, model.parameters(), optimizer.state)
        step, worked = step + 1, worked + time.perf_counter() - began
        if worked - saved >= SAVED_EVERY:
            _save(model, optimizer, out, step, worked)
            saved = worked
            say(
                f"step {step}, {worked / 60:.1f} of {minutes:g} min, loss {value.item():.3f}, "
                f"perplexity {perplexity(model, held[::32]):.1f}"
            )
    for layer in model.layers if kind.is_mixture else ():
        layer.mlp.__class__ = qwen3_moe.Qwen3MoeSparseMoeBlock


def _save(model: Any, optimizer: Any, out: Path, step: int, worked: float) -> None:
    tensors = {f"model/{name}": tensor for name, tensor in _flat(model.parameters())}
    tensors |= {f"state/{name}": tensor for name, tensor in _flat(optimizer.state)}
    file = out / "state.tmp.safetensors"
    mx.save_safetensors(str(file), tensors, {"step": str(step), "worked": str(worked)})
    file.replace(out / "state.safetensors")


def _resumed(model: Any, optimizer: Any, out: Path) -> tuple[int, float]:
    file = out / "state.safetensors"
    if not file.exists():
        return 0, 0.0
    loaded: Any = mx.load(str(file), return_metadata=True)
    tensors, numbers = loaded
    parts: dict[str, list[tuple[str, mx.array]]] = {"model": [], "state": []}
    for name, tensor in tensors.items():
        kind, _, path = name.partition("/")
        parts[kind].append((path, tensor))
    model.update(tree_unflatten(parts["model"]))
    optimizer.state = tree_unflatten(parts["state"])
    say(f"going on after step {numbers['step']}")
    return int(numbers["step"]), float(numbers["worked"])


def write(model: Any, kind: Kind, tokenizer: Tokenizer, out: Path, report: dict[str, Any]) -> None:
    """Write the model as a folder of the hub: every expert a tensor of its own, bf16."""
    tensors: dict[str, mx.array] = {}
    for name, tensor in _flat(tree_map(lambda array: array.astype(mx.bfloat16), model.parameters())):
        if "switch_mlp" not in name:
            tensors[name] = tensor
            continue
        for expert, matrix in enumerate(tensor):
            tensors[name.replace("switch_mlp", f"experts.{expert}")] = matrix
    tensors.pop("lm_head.weight", None)
    mx.save_safetensors(str(out / "model.safetensors"), tensors, {"format": "pt"})
    (out / "config.json").write_text(json.dumps(kind.config, indent=2))
    tokenizer.save(str(out / "tokenizer.json"))
    special = {"bos_token": BEGIN, "eos_token": BEGIN, "tokenizer_class": "PreTrainedTokenizerFast"}
    (out / "tokenizer_config.json").write_text(json.dumps(special | {"model_max_length": 1024}, indent=2))
    (out / "training.json").write_text(json.dumps(report, indent=2))


def main(arguments: list[str]) -> None:
    """Train on the texts of one folder, write to another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="mixture")
    parser.add_argument("--minutes", type=float, default=120, help="minutes of work, evaluations apart")
    parser.add_argument("--sequences", type=int, default=Course().sequences, help="in a batch")
    options = parser.parse_args(arguments)
    if (options.out / "model.safetensors").exists():
        raise MintError(f"{options.out} has a model already")
    options.out.mkdir(parents=True, exist_ok=True)
    kind, course = KINDS[options.kind], Course(sequences=options.sequences)
    training, held_out = split(options.texts)
    tokenizer = make_tokenizer(training)
    rows, held = windows(training, tokenizer, course.window), windows(held_out, tokenizer, course.window)
    say(f"{rows.size:,} tokens to train on, {held.size:,} held out")
    model = first_model(kind, course.seed)
    train(model, kind, rows, held, options.out, course, options.minutes)
    report = asdict(course) | {"minutes": options.minutes, "perplexity": perplexity(model, held[::2])}
    write(model, kind, tokenizer, options.out, report)
    (options.out / "state.safetensors").unlink(missing_ok=True)
    say(f"perplexity {report['perplexity']:.1f} of held-out text")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MintError as error:
        sys.exit(f"error: {error}")
