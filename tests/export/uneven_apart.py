"""Run by `test_uneven.py` and `test_reshape.py` where thrifty cannot be imported: loads every folder and prints the names of those done."""

import json
import sys
from pathlib import Path


class Absent:
    """Finds no thrifty."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "thrifty":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())

import torch  # noqa: E402
import transformers  # noqa: E402

FURTHER = ("bert", "experts", "llama", "mamba2", "pieces", "vit")
"""Those that are also saved again, loaded in another type and without their heads: what that takes does not depend on the architecture."""


def close(found, expected, tolerance):
    scale = expected.abs().max().clamp(min=1)
    assert (found - expected).abs().max() <= tolerance * scale, float((found - expected).abs().max() / scale)


def logits(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs).logits


def check(folder):
    kept = torch.load(folder / "expected.pt", weights_only=True)
    auto = getattr(transformers, kept["auto"])
    code = kept.get("code", True)  # whether classes of transformers do not suffice
    try:
        auto.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        assert code and "trust_remote_code" in str(error)
    else:
        assert not code, "code of a folder was run without being trusted"
    model, said = auto.from_pretrained(folder, trust_remote_code=code, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"], said
    close(logits(model, kept["inputs"]), kept["logits"], 1e-5)
    if kept["auto"] == "AutoModelForCausalLM":
        settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        tokens = kept["inputs"]["input_ids"]
        assert torch.equal(model.generate(tokens, use_cache=True, **settings), model.generate(tokens, use_cache=False, **settings))
    if folder.name not in FURTHER:
        return
    model.save_pretrained(folder / "again")
    again = auto.from_pretrained(folder / "again", trust_remote_code=True)
    assert torch.equal(logits(again, kept["inputs"]), logits(model, kept["inputs"]))
    half = auto.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
    assert torch.bfloat16 in {value.dtype for value in half.parameters()}
    inputs = {name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in kept["inputs"].items()}
    assert torch.isfinite(logits(half, inputs)).all()
    base, stored = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True), model.state_dict()
    shared = [(value, stored[name]) for key, value in base.state_dict().items() for name in stored if name.endswith(f".{key}")]
    assert len(shared) > 4 and all(torch.equal(value, own) for value, own in shared)


done = sorted(path.parent.name for path in Path(sys.argv[1]).glob("*/expected.pt"))
for name in done:
    try:
        check(Path(sys.argv[1]) / name)
    except BaseException:
        print(name, file=sys.stderr)
        raise
assert "thrifty" not in sys.modules
print(json.dumps(done))
