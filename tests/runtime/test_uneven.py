"""Model types that come with `import thrifty`, in a process that imports transformers after it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.uneven import write_by_hand

_CODE = """
import sys
import thrifty
assert "transformers" not in sys.modules
from transformers import AutoConfig
config = AutoConfig.from_pretrained(sys.argv[1])
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert type(model.config) is type(config) and config.model_type == "uneven_llama"
assert AutoConfig.for_model("uneven_llama").hidden_size == 4096
print(type(model).__name__, type(model).__module__)
"""


def test_registered_by_importing_the_package(tmp_path: Path) -> None:
    write_by_hand("llama", tmp_path / "model")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", _CODE, str(tmp_path / "model")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["UnevenLlamaForCausalLM", "thrifty.export.uneven.modeling_uneven"], done.stderr[-2000:]
