"""The certificate: whole round trip, no NaN, and clear refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.report.samples import certificate
from thrifty.base.errors import InputError
from thrifty.measure.certificate import FILE, SCHEMA_VERSION, Certificate, Layer, weights_digest
from thrifty.measure.gate import Gate
from thrifty.measure.hardware import hardware, versions
from thrifty.measure.hidden import score_classes, summarise_rows
from thrifty.measure.language import causal_targets, score_windows, summarise


def test_a_certificate_survives_the_file(tmp_path: Path):
    written = certificate()
    path = written.write(tmp_path)
    assert path.name == FILE == "certificate.json"
    assert Certificate.read(tmp_path) == written
    assert json.loads(path.read_text()) == written.to_json()


def test_measured_figures_go_in_as_they_are_and_keys_are_those_of_the_command_line():
    before = torch.randn(5, 8, 11, generator=torch.Generator().manual_seed(0))
    after = before + 0.1 * torch.randn(5, 8, 11, generator=torch.Generator().manual_seed(1))
    measured = summarise(score_windows(before, after, causal_targets(torch.randint(11, (5, 8)))))
    found = Certificate.build(measured=measured, model={"name": "m", "digest": "d"}, recipe="gptq").to_json()
    for key in ("kl", "quality", "flips", "perplexity", "perplexity_ratio", "top1_agreement"):
        assert found[key] == measured[key]
    assert found["scored"] == {"windows": 5, "tokens": 35}
    result = certificate().result("somewhere")
    wanted = "model out recipe seed seconds peak_rss_bytes bytes bits_per_weight perplexity kl top1_agreement quality speed layers warnings"
    assert set(wanted.split()) <= set(result)
    assert result["model"] == "tiny/model" and result["out"] == "somewhere"


def test_classifiers_fit_too():
    measured = summarise_rows(score_classes(torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])))
    found = Certificate.build(measured=measured, model={"name": "m", "digest": "d"}, recipe="gptq")
    assert found.relative_error is not None and found.accuracy is not None and found.perplexity is None
    assert Certificate.from_json(found.to_json()) == found


def test_numbers_that_are_not_finite_become_none_and_a_warning():
    row = {"metric": "perplexity", "before": 3.0, "after": math.inf, "difference": math.inf, "low": None, "high": None}
    layer = {"name": "a", "method": "gptq", "bits": 4, "sparsity": 0.0, "error": math.nan, "relative_error": math.nan}
    found = certificate(kl={"value": math.nan, "low": None, "high": None}, quality=[row], layers=[layer], warnings=["first"])
    assert found.kl.value is None and found.quality[0].after is None and found.layers[0].relative_error is None
    assert found.warnings[0] == "first"
    assert "kl.value is not a finite number" in found.warnings
    assert "quality.perplexity.after is not a finite number" in found.warnings
    assert "a: its error is not a finite number" in found.warnings
    json.dumps(found.to_json(), allow_nan=False)


def test_layers_out_of_line_are_named_in_the_warnings():
    layers = [Layer(name=str(i), method="gptq", bits=4, sparsity=0, error=1, relative_error=0.01) for i in range(9)]
    found = certificate(layers=[*layers, Layer(name="odd", method="gptq", bits=4, sparsity=0, error=1, relative_error=0.5)])
    assert any(warning.startswith("odd: relative error 0.5") for warning in found.warnings)


def test_hardware_versions_and_a_gate_fit():
    found = certificate(hardware=hardware(), versions=versions(), gate=Gate.parse("5%").verdict(certificate().to_json()["quality"]))
    assert found.gate is not None and found.gate.limit == 0.05
    assert Certificate.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_digest_of_weights_does_not_depend_on_the_order():
    assert weights_digest({"a": "1", "b": "2"}) == weights_digest({"b": "2", "a": "1"})
    assert weights_digest({"a": "1", "b": "2"}) != weights_digest({"a": "2", "b": "1"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no certificate.json"),
        ("{", "cannot be read"),
        ("[]", "is wrong"),
        ("{}", "schema version None"),
        (json.dumps({"schema_version": SCHEMA_VERSION + 1}), "schema version 2"),
        (json.dumps({"schema_version": SCHEMA_VERSION}), "model is wrong"),
        (
            json.dumps({"schema_version": SCHEMA_VERSION, "model": {"name": "m", "digest": "d"}, "recipe": "r", "extra": 1}),
            "extra is wrong",
        ),
    ],
)
def test_what_is_no_certificate_is_refused_in_one_sentence(tmp_path: Path, content: str | None, message: str):
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        Certificate.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_wrong_field_is_named():
    with pytest.raises(InputError, match=r"layers\.0\.bits is wrong"):
        certificate(layers=[{"name": "a", "method": "m", "bits": "four", "sparsity": 0, "error": 0, "relative_error": 0}])
