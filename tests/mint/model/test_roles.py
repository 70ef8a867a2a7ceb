"""Roles: the names of modules, their priors and their floors."""

import pytest

from mint.analysis.probes.sensitivity import PROFILES
from mint.model.roles import ROLES, UNKNOWN, UNTIED, role_of


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("model.layers.0.mlp.router.classifier", "router"),  # LongCat
        ("model.layers.1.mlp.gate.gate_proj", "router"),  # Bailing
        ("model.layers.1.mlp.gate.proj", "router"),  # laguna
        ("model.layers.1.mlp.gate_proj", "gate"),
        ("model.ngram_embeddings.embedders.3", "ngram_embedding"),
        ("model.embed_tokens_per_layer", "layer_embedding"),
        ("model.layers.0.self_attn.q_a_proj", "q_latent"),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa", "kv_latent"),
        ("model.layers.0.self_attn.kv_b_proj", "kv"),
        ("model.layers.0.self_attn.indexer.wq_b", "index"),
        ("model.layers.0.mlp.routed_expert_up_proj", "expert_latent"),
        ("model.layers.0.ffn.value", "down"),  # RWKV
        ("transformer.layers.0.ffn.proj_1", "gate_up"),  # OpenELM
        ("lm_head.linear", "head"),  # phixtral
        ("model.language_model.altup_projections.0", "residual"),
        ("model.layers.0.something_new", UNKNOWN),
    ],
)
def test_names_have_their_roles(path: str, role: str) -> None:
    assert role_of(path) == role


def test_every_role_has_a_prior_and_every_floor_a_source() -> None:
    assert {role.name for role in ROLES} | {UNTIED} == PROFILES.keys()
    assert all(bool(role.floor_bits) == bool(role.source) for role in ROLES)
