"""A byte-level mixture-of-experts language model with Mixtral's architecture, for training on a CPU.

Shapes: B sequences, S positions, T = B*S tokens, H hidden size, E experts, K experts a token,
F expert width, V = 256 byte values.  Losses are in nats a byte.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes of the model; the defaults are those of the committed weights."""

    vocab_size: int = 256
    hidden_size: int = 160
    num_layers: int = 4
    num_heads: int = 5
    head_dim: int = 32
    num_experts: int = 32
    top_k: int = 8
    expert_size: int = 96
    context: int = 256
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def huggingface(self, dtype: str) -> dict:
        """The config.json of transformers' MixtralForCausalLM."""
        return {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.expert_size,
            "max_position_embeddings": self.context,
            "num_attention_heads": self.num_heads,
            "num_experts_per_tok": self.top_k,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_heads,
            "num_local_experts": self.num_experts,
            "output_router_logits": False,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "router_aux_loss_coef": 0.01,
            "router_jitter_noise": 0.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": dtype,
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }

    def as_dict(self) -> dict:
        """The fields as a dictionary."""
        return asdict(self)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def swiglu(gate_up: Tensor, weight: Tensor) -> Tensor:
    """silu(gate) * up * weight: [T*K, 2F], [T*K, 1] -> [T*K, F], in gate_up's type."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up * weight).to(gate_up.dtype)


def swiglu_backward(grad: Tensor, gate_up: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`swiglu` to gate_up [T*K, 2F] and weight [T*K]."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    grad = grad.float()
    grad_weight = (grad * silu * up).sum(-1)
    grad = grad * weight
    grad_gate = grad * up * (sigmoid + silu * (1 - sigmoid))
    return torch.cat((grad_gate, grad * silu), dim=-1).to(gate_up.dtype), grad_weight


def combine(rows: Tensor, inverse: Tensor, tokens: int) -> Tensor:
    """Sum each token's K rows: sorted [T*K, H] -> [T, H] float32."""
    return rows[inverse].view(tokens, -1, rows.shape[-1]).float().sum(1)


ROW_MULTIPLE = 64  # bfloat16 products have this many rows or a multiple: few shapes, so few compiled kernels


class Kernels:
    """The element-wise steps of the expert layer, plain or compiled."""

    swiglu = staticmethod(swiglu)
    swiglu_backward = staticmethod(swiglu_backward)
    combine = staticmethod(combine)

    @classmethod
    def compile(cls) -> None:
        """Fuse them with torch.compile (they keep their meaning)."""
        for name in ("swiglu", "swiglu_backward", "combine"):
            setattr(cls, name, staticmethod(torch.compile(getattr(cls, name))))


class ExpertFunction(torch.autograd.Function):
    """Routed SwiGLU experts: tokens sorted by expert, one dense product an expert.

    Every product runs in x's type (float32 or bfloat16); the weights stay float32.
    Each expert's rows are padded with rows of routing weight 0, which add nothing to
    any result or gradient.
    """

    @staticmethod
    def forward(ctx, x: Tensor, chosen: Tensor, weight: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
        """x [T, H], chosen and weight [T, K], w13 [E, 2F, H], w2 [E, H, F] -> [T, H] float32."""
        tokens, top_k = chosen.shape
        experts, pad = w13.shape[0], ROW_MULTIPLE if x.dtype == torch.bfloat16 else 1
        sorted_expert, order = torch.sort(chosen.view(-1), stable=True)
        counts = torch.bincount(sorted_expert, minlength=experts)
        padded = (counts + (pad - 1)) // pad * pad
        shift = (padded - counts).cumsum(0) - (padded - counts)
        position = torch.arange(order.numel()) + shift[sorted_expert]
        size = order.numel() + experts * (pad - 1)
        inverse = torch.empty_like(order).scatter_(0, order, position)
        rows = order.new_zeros(size).scatter_(0, position, order // top_k)
        sorted_weight = weight.new_zeros(size).scatter_(0, position, weight.reshape(-1)[order]).unsqueeze(1)
        counts = padded.tolist()
        counts.append(size - sum(counts))
        w13, w2 = w13.to(x.dtype), w2.to(x.dtype)
        inputs = x.index_select(0, rows)
        gate_up = x.new_empty(size, w13.shape[1])
        outputs = torch.empty_like(inputs)
        for i, (a, b) in enumerate(list(zip(inputs.split(counts), gate_up.split(counts)))[:experts]):
            torch.mm(a, w13[i].t(), out=b)
        hidden = Kernels.swiglu(gate_up, sorted_weight)
        for i, (a, b) in enumerate(list(zip(hidden.split(counts), outputs.split(counts)))[:experts]):
            torch.mm(a, w2[i].t(), out=b)
        ctx.counts = counts
        ctx.save_for_backward(rows, inverse, inputs, gate_up, hidden, sorted_weight, w13, w2)
        return Kernels.combine(outputs, inverse, tokens)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        """grad [T, H] -> gradients of x, weight, w13 and w2."""
        rows, inverse, inputs, gate_up, hidden, sorted_weight, w13, w2 = ctx.saved_tensors
        counts, tokens = ctx.counts, grad.shape[0]
        grad_rows = grad.to(inputs.dtype).index_select(0, rows)
        grad_hidden, grad_inputs = torch.empty_like(hidden), torch.empty_like(inputs)
        grad_w13, grad_w2 = torch.empty_like(w13), torch.empty_like(w2)
        parts = zip(grad_rows.split(counts), hidden.split(counts), grad_hidden.split(counts))
        for i, (g, a, out) in enumerate(list(parts)[: w2.shape[0]]):
            torch.mm(g, w2[i], out=out)
            torch.mm(g.t(), a, out=grad_w2[i])
        grad_gate_up, grad_weight = Kernels.swiglu_backward(grad_hidden, gate_up, sorted_weight)
        parts = zip(grad_gate_up.split(counts), inputs.split(counts), grad_inputs.split(counts))
        for i, (g, a, out) in enumerate(list(parts)[: w2.shape[0]]):
            torch.mm(g, w13[i], out=out)
            torch.mm(g.t(), a, out=grad_w13[i])
        grad_x = Kernels.combine(grad_inputs, inverse, tokens).to(inputs.dtype)
        return grad_x, None, grad_weight[inverse].view(tokens, -1), grad_w13.float(), grad_w2.float()


class Layer(nn.Module):
    """One Mixtral layer: attention and routed experts, each with a pre-norm and a residual."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        h, e, f, a = config.hidden_size, config.num_experts, config.expert_size, config.num_heads * config.head_dim
        self.config = config
        self.input_norm = nn.Parameter(torch.ones(h))
        self.post_norm = nn.Parameter(torch.ones(h))
        self.qkv = nn.Parameter(torch.empty(3 * a, h))
        self.o = nn.Parameter(torch.empty(h, a))
        self.gate = nn.Parameter(torch.empty(e, h))
        self.w13 = nn.Parameter(torch.empty(e, 2 * f, h))
        self.w2 = nn.Parameter(torch.empty(e, h, f))

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor, drop: float) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, S, H] -> residual [B, S, H], normed [T, H], router logits [T, E] (float32)."""
        c = self.config
        b, s, h = x.shape
        qkv = F.linear(rms_norm(x, self.input_norm, c.norm_eps), self.qkv)
        q, k, v = qkv.view(b, s, 3, c.num_heads, c.head_dim).permute(2, 0, 3, 1, 4)
        half = c.head_dim // 2
        q = q * cos + torch.cat((-q[..., half:], q[..., :half]), -1) * sin
        k = k * cos + torch.cat((-k[..., half:], k[..., :half]), -1) * sin
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        y = F.linear(y.transpose(1, 2).reshape(b, s, -1), self.o)
        x = x + F.dropout(y.float(), drop, self.training)
        normed = rms_norm(x, self.post_norm, c.norm_eps).view(-1, h)
        with torch.autocast("cpu", enabled=False):
            logits = F.linear(normed, self.gate)
        return x, normed.to(v.dtype), logits

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Router logits [T, E] -> chosen [T, K], weights [T, K] (sum 1), load-balancing loss."""
        c = self.config
        probability = torch.softmax(logits, -1)
        weight, chosen = torch.topk(probability, c.top_k, dim=-1)
        load = torch.bincount(chosen.reshape(-1), minlength=c.num_experts).float() / logits.shape[0]
        balance = c.num_experts * (load * probability.mean(0)).sum()
        return chosen, weight / weight.sum(-1, keepdim=True), balance


class Model(nn.Module):
    """The language model; ``forward`` gives the loss and the mean load-balancing loss."""

    def __init__(self, config: Config, dropout: float = 0.0) -> None:
        super().__init__()
        self.config, self.dropout = config, dropout
        self.embed = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.Parameter(torch.ones(config.hidden_size))
        self.head = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.attend = Layer.attend
        self.loss_head = Model.plain_loss_head
        half = config.head_dim // 2
        angle = torch.outer(
            torch.arange(config.context).float(),
            config.rope_theta ** (-torch.arange(half).float() / half),
        )
        self.register_buffer("cos", torch.cat((angle.cos(),) * 2, -1), persistent=False)
        self.register_buffer("sin", torch.cat((angle.sin(),) * 2, -1), persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Normal initialisation, smaller where a product feeds the residual stream."""
        scale = (2 * self.config.num_layers) ** -0.5
        for name, p in self.named_parameters():
            if p.dim() > 1:
                std = 0.5 * p.shape[-1] ** -0.5 if name != "embed" else 0.1
                std *= scale if name.endswith((".o", ".w2")) else 1.0
                nn.init.normal_(p, 0.0, std, generator=generator)

    def compile(self) -> None:
        """Fuse the element-wise work with torch.compile."""
        Kernels.compile()
        self.attend = torch.compile(Layer.attend)
        self.loss_head = torch.compile(Model.plain_loss_head)

    def plain_loss_head(self, x: Tensor, target: Tensor) -> Tensor:
        """Hidden [B, S, H], target bytes [B, S] -> mean loss in nats."""
        return F.cross_entropy(self.logits(x).float().flatten(0, 1), target.flatten())

    def logits(self, x: Tensor) -> Tensor:
        """Hidden [B, S, H] -> logits [B, S, V]."""
        return F.linear(rms_norm(x, self.norm, self.config.norm_eps), self.head)

    def hidden(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes [B, S] -> last hidden [B, S, H] float32 and load-balancing loss."""
        length = tokens.shape[1]
        x = F.dropout(F.embedding(tokens, self.embed), self.dropout, self.training)
        balance = x.new_zeros(())
        for layer in self.layers:
            x, normed, logits = self.attend(layer, x, self.cos[:length], self.sin[:length], self.dropout)
            chosen, weight, layer_balance = layer.route(logits)
            y = ExpertFunction.apply(normed, chosen, weight, layer.w13, layer.w2).view_as(x)
            x = x + F.dropout(y, self.dropout, self.training)
            balance = balance + layer_balance / len(self.layers)
        return x, balance

    def forward(self, tokens: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes [B, S], next bytes [B, S] -> mean loss in nats, load-balancing loss."""
        x, balance = self.hidden(tokens)
        return self.loss_head(self, x, target), balance

    def export(self) -> dict[str, Tensor]:
        """The weights in float32 under HuggingFace Mixtral's names."""
        c = self.config
        out = {"model.embed_tokens.weight": self.embed, "model.norm.weight": self.norm, "lm_head.weight": self.head}
        for i, layer in enumerate(self.layers):
            p = f"model.layers.{i}."
            out[p + "input_layernorm.weight"] = layer.input_norm
            out[p + "post_attention_layernorm.weight"] = layer.post_norm
            for name, w in zip("qkv", layer.qkv.chunk(3)):
                out[p + f"self_attn.{name}_proj.weight"] = w
            out[p + "self_attn.o_proj.weight"] = layer.o
            out[p + "block_sparse_moe.gate.weight"] = layer.gate
            for e in range(c.num_experts):
                q = p + f"block_sparse_moe.experts.{e}."
                out[q + "w1.weight"], out[q + "w3.weight"] = layer.w13[e].chunk(2)
                out[q + "w2.weight"] = layer.w2[e]
        return {k: v.detach().float().contiguous().clone() for k, v in out.items()}

    @torch.no_grad()
    def load_export(self, state: dict[str, Tensor]) -> None:
        """Read weights under HuggingFace Mixtral's names back into this model."""
        state = {k: v.float() for k, v in state.items()}
        self.embed.copy_(state["model.embed_tokens.weight"])
        self.norm.copy_(state["model.norm.weight"])
        self.head.copy_(state["lm_head.weight"])
        for i, layer in enumerate(self.layers):
            p = f"model.layers.{i}."
            layer.input_norm.copy_(state[p + "input_layernorm.weight"])
            layer.post_norm.copy_(state[p + "post_attention_layernorm.weight"])
            layer.qkv.copy_(torch.cat([state[p + f"self_attn.{n}_proj.weight"] for n in "qkv"]))
            layer.o.copy_(state[p + "self_attn.o_proj.weight"])
            layer.gate.copy_(state[p + "block_sparse_moe.gate.weight"])
            for e in range(self.config.num_experts):
                q = p + f"block_sparse_moe.experts.{e}."
                layer.w13[e].copy_(torch.cat((state[q + "w1.weight"], state[q + "w3.weight"])))
                layer.w2[e].copy_(state[q + "w2.weight"])


@torch.no_grad()
def window_loss(model: Model, text: Tensor, window: int = 256, batch: int = 16) -> tuple[float, int]:
    """Mean nats a byte of text [N] (uint8) over whole windows, and the number of predictions.

    Float32, without compiled kernels, whatever the training run uses.
    """
    kernels = (Kernels.swiglu, Kernels.combine)
    own = (model.attend, model.loss_head, model.training)
    Kernels.swiglu, Kernels.combine = staticmethod(swiglu), staticmethod(combine)
    model.attend, model.loss_head = Layer.attend, Model.plain_loss_head
    model.eval()
    windows = text[: len(text) // window * window].view(-1, window).long()
    total = 0.0
    for part in windows.split(batch):
        total += model(part[:, :-1], part[:, 1:])[0].double().item() * part[:, 1:].numel()
    Kernels.swiglu, Kernels.combine = (staticmethod(k) for k in kernels)
    model.attend, model.loss_head = own[0], own[1]
    model.train(own[2])
    predictions = windows.shape[0] * (window - 1)
    return total / predictions, predictions
