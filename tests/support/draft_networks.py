"""Draft networks written with torch from their publications: the oracles of the drafters that read features,
and the makers of their tiny checkpoints.

Nothing is cached or incremental here: every draft is computed from all features, one request at a time, with
transformers' hidden states. `fit` trains a network on texts of the target, so that its drafts are accepted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_models import load_oracle
from torch import Tensor, nn

EPS = 1e-5
THETA = 10000.0


class RMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)


def turn(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions in the style of transformers: x [..., n, heads, D], positions [..., n]."""
    size = x.shape[-1]
    inverse = 1.0 / THETA ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = positions.float()[..., None, None] * torch.cat([inverse, inverse])
    half = torch.cat([-x[..., size // 2 :], x[..., : size // 2]], dim=-1)
    return x * angles.cos() + half * angles.sin()


class Attention(nn.Module):
    def __init__(self, c: dict[str, Any], inputs: int, norms: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        self.size = c["head_dim"]
        self.q_proj = nn.Linear(inputs, self.heads * self.size, bias=False)
        self.k_proj = nn.Linear(inputs, self.kv_heads * self.size, bias=False)
        self.v_proj = nn.Linear(inputs, self.kv_heads * self.size, bias=False)
        self.o_proj = nn.Linear(self.heads * self.size, c["hidden_size"], bias=False)
        self.q_norm = RMSNorm(self.size) if norms else nn.Identity()
        self.k_norm = RMSNorm(self.size) if norms else nn.Identity()

    def queries(self, x: Tensor, positions: Tensor) -> Tensor:
        return turn(self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, self.size))), positions)

    def keys_values(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        k = turn(self.k_norm(self.k_proj(x).unflatten(-1, (self.kv_heads, self.size))), positions)
        return k, self.v_proj(x).unflatten(-1, (self.kv_heads, self.size))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        """q [A, m, H, D], k, v [A, n, G, D], seen bool[A, m, n]"""
        each = self.heads // self.kv_heads
        k, v = k.repeat_interleave(each, dim=-2), v.repeat_interleave(each, dim=-2)
        scores = torch.einsum("amhd,anhd->ahmn", q, k) / self.size**0.5
        weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
        return self.o_proj(torch.einsum("ahmn,anhd->amhd", weights, v).flatten(-2))


class MLP(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c: dict[str, Any], inputs: int, norms: bool) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(c, inputs, norms), MLP(c)
        self.input_layernorm = RMSNorm(c["hidden_size"])
        self.post_attention_layernorm = RMSNorm(c["hidden_size"])


class TargetEnds:
    """What a draft network shares with the target `folder`, and the target's hidden states."""

    def __init__(self, folder: Path) -> None:
        self.model = load_oracle(folder)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.embed = self.model.get_input_embeddings().weight
        self.head = self.model.get_output_embeddings()
        self.config = self.model.config

    def features(self, tokens: list[int], layers: tuple[int, ...]) -> Tensor:
        """[n, layers · d]"""
        with torch.no_grad():
            found = self.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        return torch.cat([found[layer + 1][0] for layer in layers], dim=-1)

    def answer(self, prompt: list[int], count: int) -> list[int]:
        tokens = list(prompt)
        with torch.no_grad():
            for _ in range(count):
                tokens.append(int(self.model(torch.tensor([tokens])).logits[0, -1].argmax()))
        return tokens


def tiny_config(target: TargetEnds, **changes: Any) -> dict[str, Any]:
    return {
        "hidden_size": target.config.hidden_size,
        "intermediate_size": 80,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
        "max_position_embeddings": 512,
        "vocab_size": target.config.vocab_size,
        **changes,
    }


class Dflash(nn.Module):
    """DFlash (arXiv:2602.06036)."""

    def __init__(self, target: TargetEnds, layers: int = 2, block: int = 6, **changes: Any) -> None:
        super().__init__()
        group = {"target_layer_ids": [0, 1], "mask_token_id": 2}
        self.c = tiny_config(
            target, num_hidden_layers=layers, block_size=block, dflash_config=group, **changes
        )
        self.target, self.block = target, block
        self.capture = tuple(group["target_layer_ids"])
        hidden = self.c["hidden_size"]
        self.layers = nn.ModuleList([Layer(self.c, hidden, True) for _ in range(layers)])
        self.norm, self.hidden_norm = RMSNorm(hidden), RMSNorm(hidden)
        self.fc = nn.Linear(hidden * len(self.capture), hidden, bias=False)

    def forward(self, features: Tensor, tokens: Tensor, known: Tensor, absent: int = 0) -> Tensor:
        """Logits [A, block - 1, V] of blocks that begin at index known[a] - 1 of `tokens`: their context is
        that of all positions before it but the first `absent`."""
        starts, offsets = known - 1, torch.arange(self.block)
        ids = torch.full((len(starts), self.block), self.c["dflash_config"]["mask_token_id"])
        ids[:, 0] = tokens[starts]
        positions = starts[:, None] + offsets
        x = self.target.embed[ids]
        places = torch.arange(len(features))
        context = self.hidden_norm(self.fc(features))
        before = (places[None, :] < starts[:, None]) & (places >= absent)
        all_positions = torch.cat([places.expand(len(starts), -1), positions], dim=1)
        present = torch.cat([before, torch.ones_like(positions, dtype=torch.bool)], dim=1)
        for index, layer in enumerate(self.layers):
            h = layer.input_layernorm(x)
            q = layer.self_attn.queries(h, positions)
            k, v = layer.self_attn.keys_values(h, positions)
            ck, cv = layer.self_attn.keys_values(context, places)
            k = torch.cat([ck.expand(len(starts), *ck.shape), k], dim=1)
            v = torch.cat([cv.expand(len(starts), *cv.shape), v], dim=1)
            seen = present[:, None, :].expand(-1, self.block, -1)
            if self.c.get("layer_types", [""] * len(self.layers))[index] == "sliding_attention":
                distance = positions[:, :, None] - all_positions[:, None, :]
                seen = seen & (distance < self.c["sliding_window"])
                seen = seen & (distance >= 0 if self.is_causal else -distance < self.c["sliding_window"])
            x = x + layer.self_attn(q, k, v, seen)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.target.head(self.norm(x[:, 1:]))

    @property
    def is_causal(self) -> bool:
        return bool(self.c["dflash_config"].get("causal", True))  # of sliding layers

    def drafts(self, tokens: list[int], count: int, absent: int = 0) -> list[int]:
        features = self.target.features(tokens[:-1], self.capture)
        with torch.no_grad():
            logits = self(features, torch.tensor(tokens), torch.tensor([len(tokens)]), absent)
        return logits[0].argmax(-1)[:count].tolist()

    def loss(self, tokens: list[int], features: Tensor) -> Tensor:
        known = torch.arange(2, len(tokens) - self.block + 2)
        logits = self(features, torch.tensor(tokens), known)
        labels = torch.tensor(tokens).unfold(0, self.block, 1)[1:, 1:]
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


class Recurrent(nn.Module):
    """What EAGLE-3 heads and MTP modules have in common. `layer` is the decoder layer."""

    c: dict[str, Any]
    target: TargetEnds
    capture: tuple[int, ...]

    @property
    def layer(self) -> Any:
        raise NotImplementedError

    def hidden(self, features: Tensor) -> Tensor:
        raise NotImplementedError

    def enter(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The residual, and what attention reads."""
        raise NotImplementedError

    def head(self, result: Tensor) -> Tensor:
        """Logits over the target's vocabulary, very low where there is no such draft."""
        raise NotImplementedError

    def forward(
        self, features: Tensor, tokens: Tensor, known: Tensor, count: int, teach: bool, absent: int = 0
    ) -> Tensor:
        """Logits [A, count, V] after the first known[a] tokens. teach: the drafts are those of `tokens`."""
        attention, places = self.layer.self_attn, torch.arange(len(tokens) - 1)
        residual, x = self.enter(self.hidden(features[: len(tokens) - 1]), tokens[1:])
        k, v = (part.expand(len(known), *part.shape) for part in attention.keys_values(x, places))
        seen = (places <= known[:, None] - 2) & (places >= absent)
        residual, x = residual[known - 2][:, None], x[known - 2][:, None]
        found = []
        for step in range(count):
            positions = (known - 2 + step)[:, None]
            if step:
                new_k, new_v = attention.keys_values(x, positions)
                k, v = torch.cat([k, new_k], dim=1), torch.cat([v, new_v], dim=1)
                seen = torch.cat([seen, torch.ones(len(known), 1, dtype=torch.bool)], dim=1)
            result = residual + attention(attention.queries(x, positions), k, v, seen[:, None])
            result = result + self.layer.mlp(self.layer.post_attention_layernorm(result))
            found.append(self.head(result)[:, 0])
            following = tokens[known + step] if teach else found[-1].argmax(-1)
            if step + 1 < count:
                residual, x = self.enter(result, following[:, None])
        return torch.stack(found, dim=1)

    def drafts(self, tokens: list[int], count: int, absent: int = 0) -> list[int]:
        features = self.target.features(tokens[:-1], self.capture)
        with torch.no_grad():
            known = torch.tensor([len(tokens)])
            logits = self(features, torch.tensor(tokens), known, count, False, absent)
        return logits[0].argmax(-1).tolist()

    def loss(self, tokens: list[int], features: Tensor, ahead: int = 4) -> Tensor:
        known = torch.arange(2, len(tokens) - ahead + 1)
        logits = self(features, torch.tensor(tokens), known, ahead, True)
        labels = torch.tensor(tokens).unfold(0, ahead, 1)[2:]
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


class EagleLayer(Layer):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__(c, 2 * c["hidden_size"], False)
        self.hidden_norm = RMSNorm(c["hidden_size"])


class Eagle(Recurrent):
    """An EAGLE-3 head (arXiv:2503.01840). ids: the target's tokens of its vocabulary; None: all, with the
    target's own head and embedding."""

    def __init__(self, target: TargetEnds, ids: list[int] | None = None, **changes: Any) -> None:
        super().__init__()
        self.capture = (-1, 0, 1)
        self.c = tiny_config(target, eagle_aux_hidden_state_layer_ids=[0, 1, 2], **changes)
        self.target = target
        hidden, size = self.c["hidden_size"], target.config.hidden_size
        self.fc = nn.Linear(3 * size, hidden, bias=False)
        self.midlayer = EagleLayer(self.c)
        self.norm = RMSNorm(hidden)
        self.ids = ids
        if ids is not None:
            self.c["draft_vocab_size"] = len(ids)
            self.lm_head = nn.Linear(hidden, len(ids), bias=False)
            self.embed_tokens = nn.Embedding(target.config.vocab_size, hidden)
            self.register_buffer("d2t", torch.tensor(ids) - torch.arange(len(ids)))
            self.register_buffer("t2d", torch.zeros(target.config.vocab_size, dtype=torch.bool))

    @property
    def layer(self) -> EagleLayer:
        return self.midlayer

    def hidden(self, features: Tensor) -> Tensor:
        return self.fc(features)

    def enter(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.target.embed[tokens] if self.ids is None else self.embed_tokens(tokens)
        normed = self.midlayer.hidden_norm(hidden)
        residual = normed if self.c.get("norm_before_residual") else hidden
        return residual, torch.cat([self.midlayer.input_layernorm(embedded), normed], dim=-1)

    def head(self, result: Tensor) -> Tensor:
        if self.ids is None:
            return self.target.head(self.norm(result))
        logits = torch.full((*result.shape[:-1], self.target.config.vocab_size), -1e9)
        logits[..., self.ids] = self.lm_head(self.norm(result))
        return logits


class MtpHead(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = RMSNorm(size)


class MtpModule(Layer):
    def __init__(self, c: dict[str, Any]) -> None:
        hidden = c["hidden_size"]
        super().__init__(c, hidden, True)
        self.enorm, self.hnorm = RMSNorm(hidden), RMSNorm(hidden)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.shared_head = MtpHead(hidden)


class Mtp(Recurrent):
    """An MTP module as in DeepSeek-V3's report (arXiv:2412.19437), with ordinary attention."""

    def __init__(self, target: TargetEnds, **changes: Any) -> None:
        super().__init__()
        self.c = tiny_config(target, **changes)
        self.target = target
        count = target.config.num_hidden_layers
        self.capture = (count - 1,)  # transformers hands out the last state after the final norm
        self.model = nn.ModuleDict({"layers": nn.ModuleDict({str(count): MtpModule(self.c)})})

    @property
    def layer(self) -> Any:
        return next(iter(self.model["layers"].values()))  # type: ignore[operator]

    def hidden(self, features: Tensor) -> Tensor:
        return features

    def enter(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        both = [self.layer.enorm(self.target.embed[tokens]), self.layer.hnorm(hidden)]
        x = self.layer.eh_proj(torch.cat(both, dim=-1))
        return x, self.layer.input_layernorm(x)

    def head(self, result: Tensor) -> Tensor:
        return self.target.head(self.layer.shared_head.norm(result))


def randomize(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 1.2 * noise / parameter.shape[-1] ** 0.5)


def fit(network: Any, texts: list[list[int]], steps: int, rate: float = 3e-3) -> float:
    """Train on texts that the target wrote; the last loss."""
    found = [network.target.features(tokens, network.capture) for tokens in texts]
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    loss = torch.zeros(())
    for _ in range(steps):
        loss = torch.stack(
            [network.loss(tokens, each) for tokens, each in zip(texts, found, strict=True)]
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def save(network: Any, folder: Path) -> Path:
    """The checkpoint of a network, as its publishers lay it out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(network.c))
    tensors = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    return folder
