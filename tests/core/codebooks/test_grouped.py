"""Groups of channels: the parts of a vector are quantized as if they were alone."""

from __future__ import annotations

import pytest
import torch

from tests.core.codebooks.vectors import correlated, distortion, gaussian, seeded, uniform_scalar
from thrifty.base.errors import InputError
from thrifty.core.codebooks.additive import fit_residual
from thrifty.core.codebooks.grouped import fit_grouped_residual, fit_product
from thrifty.core.codebooks.kmeans import fit_codebook


def test_one_group_is_the_plain_quantizer():
    vectors = gaussian(1, 500, 4)
    product, plain = fit_product(vectors, 1, 16, seeded(0)), fit_codebook(vectors, 16, seeded(0))
    assert torch.equal(product.encode(vectors), plain.encode(vectors))
    assert torch.equal(product.decode(product.encode(vectors)), plain.decode(plain.encode(vectors)))
    grouped, residual = fit_grouped_residual(vectors, 1, 3, 8, seeded(0)), fit_residual(vectors, 3, 8, seeded(0))
    assert torch.equal(grouped.encode(vectors), residual.encode(vectors))
    assert torch.equal(grouped.decode(grouped.encode(vectors)), residual.decode(residual.encode(vectors)))


def test_groups_are_quantized_as_if_alone_and_their_errors_add_up():
    vectors = gaussian(2, 500, 6)
    for quantizer in (fit_product(vectors, 3, 8, seeded(0)), fit_grouped_residual(vectors, 3, 2, 8, seeded(0))):
        indices = quantizer.encode(vectors)
        whole = (vectors - quantizer.decode(indices)).square().sum()
        parts = torch.zeros((), dtype=torch.float64)
        for place, part in enumerate(quantizer.parts):
            run = vectors[:, 2 * place : 2 * place + 2]
            codes = part.encode(run)
            width = codes.shape[1]
            assert torch.equal(codes, indices[:, width * place : width * place + width])
            parts += (run - part.decode(codes)).square().sum()
        torch.testing.assert_close(whole, parts, rtol=1e-12, atol=0)
        assert quantizer.bits == sum(part.bits for part in quantizer.parts)


def test_codes_of_a_product_are_those_of_what_they_stand_for():
    vectors = gaussian(3, 800, 6)
    quantizer = fit_product(vectors, 3, 8, seeded(0))
    codes = torch.cartesian_prod(*[torch.arange(8)] * 3)
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)


def test_a_product_of_correlated_values_loses_less_than_uniform_levels_of_the_same_bits():
    vectors = correlated(4, 6000, 8)
    quantizer = fit_product(vectors, 4, 2**4, seeded(0))
    assert quantizer.bits == 8 * 2
    assert distortion(vectors, quantizer.decode(quantizer.encode(vectors))) < 0.8 * distortion(vectors, uniform_scalar(vectors, 2))


def test_groups_that_do_not_divide_the_vectors_are_refused():
    with pytest.raises(InputError, match="4 groups do not divide vectors of 6 values"):
        fit_product(gaussian(5, 20, 6), 4, 2, seeded(0))
