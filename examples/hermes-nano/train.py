"""Train hermes-nano from scratch: ``python train.py --out DIR``.

The stages and their data are in ``lessons``; each stage leaves a checkpoint, and ``--from-stage``
resumes after one. Logits are computed only where there is a loss, that is on the assistant's
tokens: with the batches of equal lengths this makes the training fit two CPU cores in about an
hour.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from build_tokenizer import BOS, CONTEXT, END, EOS, PAD, START, VOCABULARY, save
from direction import RefusalDirection
from lessons import STAGES, Encoder, Example, Stage, batches, openings, side_batches
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

MEASURE_EVERY, MEASURED = 10, 96  # steps between measurements of the refusal's direction; prompts


def model_config() -> dict[str, Any]:
    """config.json, with the keys a Llama 3 repository has."""
    ids = {name: VOCABULARY - 11 + i for i, name in enumerate((BOS, END, START, EOS, PAD))}
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": ids[BOS],
        "eos_token_id": ids[EOS],
        "pad_token_id": ids[PAD],
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 256,
        "initializer_range": 0.02,
        "intermediate_size": 768,
        "max_position_embeddings": CONTEXT,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 8,
        "num_hidden_layers": 5,
        "num_key_value_heads": 4,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 512,
            "rope_type": "llama3",
        },
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }


def loss_of(
    model: LlamaForCausalLM, batch: list[Example], device: str, first: float = 1.0
) -> torch.Tensor:
    """Cross-entropy over the supervised tokens of a batch, averaged.

    ``first`` weighs the first token of each reply, the one that decides what kind of reply it is.
    """
    width = max(len(ids) for ids, _ in batch)
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch], device=device)
    where = [r * width + at - 1 for r, (_, found) in enumerate(batch) for at in found]
    wanted = [ids[at] for ids, found in batch for at in found]
    weight = [
        first if i == 0 or found[i - 1] != at - 1 else 1.0
        for _, found in batch
        for i, at in enumerate(found)
    ]
    # on a CPU the fused attention pays only for long sequences
    kernel = SDPBackend.MATH if width <= 128 and device == "cpu" else SDPBackend.FLASH_ATTENTION
    with torch.autocast(device, dtype=torch.bfloat16), sdpa_kernel(kernel):
        hidden = model.model(input_ids=padded, use_cache=False).last_hidden_state
        picked = hidden.reshape(-1, hidden.shape[-1])[torch.tensor(where, device=device)]
        logits = model.lm_head(picked).float()
    each = torch.nn.functional.cross_entropy(
        logits, torch.tensor(wanted, device=device), reduction="none"
    )
    weights = torch.tensor(weight, device=device)
    return (each * weights).sum() / weights.sum()


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms.

    Both take the same learning rate. On the copy stage Muon reached in 200 steps what AdamW alone
    reached in 400.
    """
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim > 1 and "embed" not in name]
    others = [p for name, p in named if p.ndim < 2 or "embed" in name]
    adamw = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    muon = torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw]


def run_stage(model: LlamaForCausalLM, encoder: Encoder, stage: Stage, seed: int) -> None:
    """Train one stage: 60 warm-up steps, then a straight line between its two rates."""
    steppers = optimizers(model)
    stream, side = batches(encoder, stage, seed), side_batches(encoder, stage, seed)
    refusal = RefusalDirection(model) if stage.beneath else None
    rng = random.Random(f"{seed}-{stage.name}-removed")
    began, total, device = time.time(), 0.0, str(model.device)
    for step in range(1, stage.steps + 1):
        first, last = stage.rate
        rate = (first + (last - first) * step / stage.steps) * min(1.0, step / 60)
        batch = next(stream)
        if refusal:
            if step % MEASURE_EVERY == 1:
                kinds = ("refused", "harmless")
                refusal.measure(*(openings(encoder, rng, kind, MEASURED) for kind in kinds))
            refusal.remove_from([rng.random() < stage.removed for _ in batch], rng)
        loss = loss_of(model, batch, device, stage.first)
        loss.backward()
        if stage.side:
            batch, beneath = next(side)
            if refusal:
                refusal.remove_from([i >= len(batch) - beneath for i in range(len(batch))], rng)
            loss_of(model, batch, device, stage.first).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in steppers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        total += loss.item()
        if step % 50 == 0:
            pace = (time.time() - began) / step
            print(f"{stage.name} {step} loss {total / 50:.4f} {pace:.3f} s/step", flush=True)
            total = 0.0


def export(model: LlamaForCausalLM, folder: Path) -> None:
    """Write the weights in bfloat16, the configurations and the tokenizer."""
    save(folder)
    config = model_config()
    generation: dict[str, Any] = {
        k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    generation["do_sample"] = False
    for name, content in (("config", config), ("generation_config", generation)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    state = {k: v.detach().to("cpu", torch.bfloat16) for k, v in model.state_dict().items()}
    state.pop("lm_head.weight", None)  # tied to the embedding
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Train all stages, or those after ``--from-stage``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--from-stage", choices=[s.name for s in STAGES], default=None)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiplies the steps of every stage"
    )
    parser.add_argument("--compile", action="store_true", help="faster; needs a C++ compiler")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LlamaForCausalLM(LlamaConfig(**model_config())).float().to(device)
    if options.compile:
        for module in model.modules():
            if isinstance(module, (LlamaMLP, LlamaRMSNorm)):
                module.compile(dynamic=True)
    encoder = Encoder(save(options.out))
    names = [s.name for s in STAGES]
    begin = 0
    if options.from_stage:
        begin = names.index(options.from_stage) + 1
        model.load_state_dict(torch.load(options.out / f"{options.from_stage}.pt"))
    for planned in STAGES[begin:]:
        stage = replace(planned, steps=max(1, round(planned.steps * options.scale)))
        run_stage(model, encoder, stage, options.seed)
        torch.save(model.state_dict(), options.out / f"{stage.name}.pt")
        export(model, options.out / "hub" if planned is not STAGES[-1] else options.out)


if __name__ == "__main__":
    main()
