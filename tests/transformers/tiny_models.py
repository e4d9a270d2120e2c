"""Tiny random models of every family that is integrated: two or more MoE layers of 8 experts."""
import torch
import transformers as hf

_BASE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
_LATENT = {
    "q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "num_key_value_heads": 4, "n_shared_experts": 1, "moe_intermediate_size": 16,
    "n_routed_experts": 8,
}  # fmt: skip

FAMILIES = {
    "Mixtral": {"num_local_experts": 8, "num_experts_per_tok": 3},
    "Qwen2Moe": {
        "num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 32, "norm_topk_prob": False,
    },
    "Qwen3Moe": {
        "num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 16,
        "norm_topk_prob": True, "head_dim": 8,
    },
    "Olmoe": {"num_experts": 8, "num_experts_per_tok": 4},
    "DeepseekV2": {
        **_LATENT, "num_experts_per_tok": 3, "first_k_dense_replace": 0, "n_group": 4,
        "topk_group": 2, "topk_method": "group_limited_greedy",
    },
    "DeepseekV3": {
        **_LATENT, "num_experts_per_tok": 4, "first_k_dense_replace": 1, "n_group": 4,
        "topk_group": 2, "num_hidden_layers": 3,
    },
    "Glm4Moe": {
        "n_routed_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 16,
        "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 8, "num_hidden_layers": 3,
    },
    "GptOss": {
        "num_local_experts": 8, "num_experts_per_tok": 4, "head_dim": 8,
        "layer_types": ["full_attention", "full_attention"],
    },
    "GraniteMoe": {"num_local_experts": 8, "num_experts_per_tok": 4},
    "NemotronH": {
        "layers_block_type": ["moe", "attention", "moe", "mamba"], "n_routed_experts": 8,
        "num_experts_per_tok": 4, "moe_intermediate_size": 16, "head_dim": 8,
        "moe_shared_expert_intermediate_size": 16, "mamba_num_heads": 4, "mamba_head_dim": 8,
        "ssm_state_size": 8, "n_groups": 2, "chunk_size": 16,
    },
    "MiniMax": {
        "num_local_experts": 8, "num_experts_per_tok": 3, "head_dim": 8, "block_size": 16,
        "layer_types": ["full_attention", "linear_attention"],
    },
    "Phimoe": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "Jamba": {
        "num_experts": 8, "num_experts_per_tok": 3, "expert_layer_period": 1,
        "expert_layer_offset": 0, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4,
    },
    "HunYuanMoEV1": {"num_experts": 8, "moe_topk": 3, "head_dim": 8},
}  # fmt: skip


def available() -> list:
    return [name for name in FAMILIES if hasattr(hf, f"{name}ForCausalLM")]


def make(family: str, seed: int = 0, **changes):
    """A model in evaluation mode, float32, with weights that make routers sure of some tokens."""
    fields = {**_BASE, **FAMILIES[family], **changes}
    if family == "NemotronH":
        del fields["num_hidden_layers"]  # follows from the block types
    config = getattr(hf, f"{family}Config")(**fields)
    torch.manual_seed(seed)
    model = getattr(hf, f"{family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                scale = 0.5 / parameter.shape[-1] ** 0.5 if parameter.shape[-1] > 1 else 0.5
                parameter.copy_(2 * scale * torch.randn(parameter.shape, generator=generator))
        for module in model.modules():
            bias = getattr(module, "e_score_correction_bias", None)
            if bias is not None:
                bias.copy_(0.1 * torch.randn(bias.shape, generator=generator))
    return model


def tokens(batch: int = 2, length: int = 13, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 96, (batch, length), generator=torch.Generator().manual_seed(seed))
