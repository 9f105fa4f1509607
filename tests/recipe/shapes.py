"""A model's anatomy written by hand: two decoder blocks of seven linears."""

from __future__ import annotations

from thrifty.base.anatomy import Anatomy, Block, Linear, Norm, Space, Stage


def anatomy(hidden: int = 64, inner: int = 128, blocks: int = 2, commutes: bool = True) -> Anatomy:
    """Two blocks of q, k, v, o, gate, up, down with a head of the name lm_head."""
    built = tuple(_block(index, hidden, inner, commutes) for index in range(blocks))
    return Anatomy(
        architecture="LlamaForCausalLM",
        model_type="llama",
        kind="causal_lm",
        chains=("model.layers",),
        blocks=built,
        hidden_size=hidden,
        embeddings=("model.embed_tokens",),
        head="lm_head",
    )


def _block(index: int, hidden: int, inner: int, commutes: bool) -> Block:
    path = f"model.layers.{index}"
    widths = {
        "attention": (hidden, {"self_attn.q_proj": hidden, "self_attn.k_proj": hidden, "self_attn.v_proj": hidden}),
        "values": (hidden, {"self_attn.o_proj": hidden}),
        "mlp": (hidden, {"mlp.gate_proj": inner, "mlp.up_proj": inner}),
        "neurons": (inner, {"mlp.down_proj": hidden}),
    }
    stages = []
    for name, (width, outputs) in widths.items():
        linears = tuple(_linear(f"{path}.{end}", out, width) for end, out in outputs.items())
        producers = (f"{path}.input_layernorm",) if commutes else ()
        consumers = tuple(linear.path for linear in linears)
        space = Space(f"{path}.{name}", width, producers=producers, consumers=consumers, commutes_with="scale" if commutes else "none")
        stages.append(Stage(space, linears))
    norms = (Norm(f"{path}.input_layernorm", "rms", hidden),)
    router = Linear(f"{path}.mlp.router", "router", 4, hidden, f"{path}.mlp.router.weight")
    return Block(path, index, "model.layers", tuple(stages), tuple(stage.reads for stage in stages), norms=norms, routers=(router,))


def _linear(path: str, out: int, width: int) -> Linear:
    return Linear(path, path.rsplit(".", 1)[-1].removesuffix("_proj"), out, width, f"{path}.weight")
