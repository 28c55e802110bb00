"""Training step in PyTorch: diffusers' FLUX transformer with PEFT's adapters, and its Krea2TextFusion as the DLA."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_krea2 import Krea2TextFusion
from peft import LoraConfig
from torch import Tensor, nn

from mllmsubj.config.train import TrainConfig
from mllmsubj.convert import flux
from mllmsubj.convert.engine import LAYOUTS, Entry, Table, inside, linear, norm, repeat
from mllmsubj.models.dla import DLAConfig
from mllmsubj.models.subject import SubjectConfig
from mllmsubj.train.optimizer import WEIGHT_DECAY
from mllmsubj.tree import flatten
from mllmsubj.typing import Params

ZERO_CENTRED = ("norm1", "norm2", "norm_q", "norm_k")
"""Krea 2 stores these scales as differences from one."""
ADAPTER = ".lora_A.default.weight"


@dataclass(frozen=True)
class PeerBatch:
    """Inputs of both steps, sampled beforehand; states have Krea2TextFusion's layout, [b, s, l, d]."""

    text: Tensor
    image: Tensor
    null: Tensor
    pooled: Tensor
    references: Tensor
    target_mean: Tensor
    target_std: Tensor
    posterior: Tensor
    noise: Tensor
    t: Tensor
    mask: Tensor
    """Attention mask [b, m] of [null; text; image; latents; references]."""
    image_ids: Tensor


class Aggregator(nn.Module):
    """One half of the DLA: a norm for each state, LAP without refiner, the connector."""

    def __init__(self, config: DLAConfig) -> None:
        """Requires `norm_states`, `width` equal to `input_dim`, and no refiner blocks."""
        super().__init__()
        assert config.norm_states
        assert (config.width, config.num_refiner_blocks) == (config.input_dim, 0)
        heads = config.num_heads, config.num_kv_heads
        self.layer_norms = nn.Parameter(torch.ones(config.num_states, config.input_dim))
        self.lap = Krea2TextFusion(
            config.num_states, config.width, *heads, config.intermediate_size, config.num_blocks, 0, config.eps
        )
        self.norm = nn.RMSNorm(config.width, config.eps)
        self.linear_1 = nn.Linear(config.width, config.context_dim)
        self.linear_2 = nn.Linear(config.context_dim, config.context_dim)
        self.eps = config.eps

    def forward(self, states: Tensor) -> Tensor:
        """Returns context tokens [b, s, context_dim] of hidden states [b, s, l, d]."""
        x = self.lap(F.rms_norm(states, states.shape[-1:], eps=self.eps) * self.layer_norms)
        return self.linear_2(F.silu(self.linear_1(self.norm(x))))


class Peer(nn.Module):
    """DLA and transformer, with the optimizer and running mean of `TrainStep.update`."""

    def __init__(
        self, config: SubjectConfig, train: TrainConfig, rates: Mapping[str, float], warmup_steps: int
    ) -> None:
        """`rates`: path of each trained parameter in our layout -> peak learning rate."""
        super().__init__()
        assert config.lora is not None
        self.train_config, self.warmup_steps, self.done = train, warmup_steps, 0
        self.dla = nn.ModuleDict({name: Aggregator(config.dla) for name in ("text", "image")})
        self.transformer = FluxTransformer2DModel(**asdict(config.transformer)).requires_grad_(False)
        self.table = table(config)
        adapted = [
            e.source.split(".lora_A")[0].removeprefix("transformer.") for e in self.table if ".lora_A" in e.source
        ]
        self.transformer.add_adapter(
            LoraConfig(r=config.lora.rank, lora_alpha=int(config.lora.alpha), target_modules=adapted)
        )
        parameters, groups = dict(self.named_parameters()), defaultdict(list)
        for entry in self.table:
            if entry.target in rates:
                groups[rates[entry.target], WEIGHT_DECAY.fullmatch(entry.target) is not None].append(
                    parameters[entry.source]
                )
        self.trained = [parameter for group in groups.values() for parameter in group]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": group, "lr": rate, "peak": rate, "weight_decay": train.weight_decay * decayed}
                for (rate, decayed), group in groups.items()
            ],
            betas=(train.beta1, train.beta2),
            fused=True,
        )

    def load(self, params: Params) -> None:
        """Loads our stacked parameters of the DLA and the transformer, from which the running mean starts."""
        tensors = {name: torch.tensor(array) for name, array in export(params, self.table).items()}
        self.load_state_dict({name: x - 1 if _zero_centred(name) else x for name, x in tensors.items()})
        self.mean = [parameter.detach().clone() for parameter in self.trained]

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the trained parameters, with the names and values of `export`."""
        trained = ((name, p.detach().numpy()) for name, p in self.named_parameters() if p.requires_grad)
        return {name: array + 1 if _zero_centred(name) else array for name, array in trained}

    def gradients(self) -> dict[str, np.ndarray]:
        """Returns Adam's first moments: after the first step, the clipped gradients times 1 − beta1."""
        state = self.optimizer.state
        return {name: state[p]["exp_avg"].numpy() for name, p in self.named_parameters() if p.requires_grad}

    def loss(self, rows: PeerBatch) -> Tensor:
        """Returns the mean squared error of the velocity."""
        t, batch = rows.t[:, None, None], len(rows.t)
        picture = rows.target_mean
        if self.train_config.sample_posterior:
            picture = picture + rows.target_std * rows.posterior
        latents = (1 - t) * picture + t * rows.noise
        null = self.dla["text"](rows.null).expand(batch, -1, -1)
        context = torch.cat([null, self.dla["text"](rows.text), self.dla["image"](rows.image)], dim=1)
        velocity = self.transformer(
            hidden_states=torch.cat([latents, rows.references], dim=1),
            encoder_hidden_states=context,
            pooled_projections=rows.pooled,
            timestep=rows.t,
            img_ids=rows.image_ids,
            txt_ids=torch.zeros(context.shape[1], 3),
            guidance=torch.full((batch,), self.train_config.guidance),
            joint_attention_kwargs={"attention_mask": rows.mask[:, None, None, :]},
            return_dict=False,
        )[0][:, : latents.shape[1]]
        return F.mse_loss(velocity, rows.noise - picture)

    def step(self, rows: PeerBatch) -> float:
        """One update; returns the loss before it."""
        train = self.train_config
        warm = min(1.0, (self.done + 1) / max(1, self.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = warm * group["peak"]
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(rows)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, train.clip_norm)
        self.optimizer.step()
        decay = min(train.ema_decay, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            torch._foreach_lerp_(self.mean, self.trained, 1 - decay)
        self.done += 1
        return loss.item()


def table(config: SubjectConfig) -> Table:
    """Returns an entry for every tensor of a `Peer`, with its path in our parameters."""
    assert config.lora is not None
    aggregator = _aggregator(config.dla)
    entries: Table = []
    for entry in flux.table(config.transformer):
        module, _, leaf = entry.source.rpartition(".")
        path = entry.target.rpartition("/")[0]
        if entry.index is None or path.rpartition("/")[2] not in config.lora.targets:
            entries.append(entry)
            continue
        entries.append(replace(entry, source=f"{module}.base_layer.{leaf}"))
        if leaf == "weight":
            for theirs, ours in (("lora_A", "lora_a"), ("lora_B", "lora_b")):
                entries.append(replace(entry, source=f"{module}.{theirs}.default.weight", target=f"{path}/{ours}"))
    return [
        *(e for half in ("text", "image") for e in inside(f"dla.{half}.", f"dla/{half}/", aggregator)),
        *inside("transformer.", "transformer/", entries),
    ]


def export(params: Params, entries: Table) -> dict[str, np.ndarray]:
    """Returns tensors in PyTorch's layout from our stacked parameters, without `entries` that `params` lacks."""
    leaves: Mapping[str, np.ndarray] = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    tensors = {}
    for entry in entries:
        if entry.target in leaves:
            leaf = leaves[entry.target]
            layer = leaf if entry.index is None else leaf.take(entry.index, entry.axis)
            tensors[entry.source] = LAYOUTS[entry.layout](layer)  # each layout here is its own inverse
    return tensors


def _zero_centred(source: str) -> bool:
    return ".lap." in source and source.split(".")[-2] in ZERO_CENTRED


def _aggregator(config: DLAConfig) -> Table:
    names = {f"attn.{name}": name for name in ("to_q", "to_k", "to_v", "to_gate")}
    names |= {"attn.to_out.0": "to_out", "ff.gate": "gate_proj", "ff.up": "up_proj", "ff.down": "down_proj"}
    norms = {"norm1": "norm1", "norm2": "norm2", "attn.norm_q": "norm_q", "attn.norm_k": "norm_k"}
    block = [e for source, target in names.items() for e in linear(source, target, bias=False)]
    block += [e for source, target in norms.items() for e in norm(source, target)]
    return [
        Entry("layer_norms", "lap/layer_norms"),
        *repeat(config.num_blocks, "lap.layerwise_blocks.{i}.", "lap/blocks/", block),
        *linear("lap.projector", "lap/pool", bias=False),
        *norm("norm", "norm"),
        *linear("linear_1", "linear_1"),
        *linear("linear_2", "linear_2"),
    ]
