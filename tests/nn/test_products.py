"""The algebra of scalars, vectors and traceless tensors, against matrices written out."""

import pytest
import torch
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from phicalc.nn.products import Products, components, compressed, matrices, quadrupoles

F, N = 5, 4


def turn() -> torch.Tensor:
    """A rotation and a reflection, (3, 3)."""
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0]).double())
    return torch.tensor(Rotation.random(rng=3).as_matrix()) @ mirror


def densities() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(N, F).double(), torch.randn(N, 3, F).double(), torch.randn(N, 5, F).double()


def turned(density: tuple[torch.Tensor, ...], q: torch.Tensor) -> tuple[torch.Tensor, ...]:
    tensors = torch.einsum("ab,nbcf,dc->nadf", q, matrices(density[2]), q)
    return density[0], torch.einsum("ab,nbf->naf", q, density[1]), components(tensors)


def test_components_are_those_of_an_orthonormal_basis():
    tensors = densities()[2]
    found = matrices(tensors)
    assert_allclose(found, found.transpose(1, 2))
    assert_allclose(found.diagonal(dim1=1, dim2=2).sum(-1), 0.0, atol=1e-15)
    assert_allclose(found.square().sum((1, 2)), tensors.square().sum(1), rtol=1e-14)
    assert_allclose(components(found), tensors, rtol=1e-14, atol=1e-15)


def test_components_leave_out_the_trace_and_what_is_antisymmetric():
    any_matrix = torch.randn(N, 3, 3, F, generator=torch.Generator().manual_seed(1)).double()
    symmetric = 0.5 * (any_matrix + any_matrix.transpose(1, 2))
    trace = symmetric.diagonal(dim1=1, dim2=2).sum(-1)
    expected = symmetric - torch.eye(3).double()[None, :, :, None] * trace[:, None, None] / 3
    assert_allclose(matrices(components(any_matrix)), expected, atol=1e-14)


def test_quadrupoles_are_r_r_without_its_trace_and_of_length_one():
    r = torch.nn.functional.normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(2)))
    r = torch.nn.functional.normalize(r.double())
    found = quadrupoles(r)
    assert_allclose(found.square().sum(1), 1.0, rtol=1e-14)
    expected = 1.5**0.5 * (r[:, :, None] * r[:, None] - torch.eye(3).double() / 3)
    assert_allclose(matrices(found[:, :, None])[..., 0], expected, atol=1e-15)


@pytest.mark.parametrize("shape", [(N, F), (N, 3, F), (N, 5, F)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e6])
def test_what_is_compressed_is_shorter_than_one_in_the_mean(shape, size):
    torch.manual_seed(3)
    x = size * torch.randn(shape, dtype=torch.float64)
    found = compressed(x)
    lengths = x.square() if x.dim() == 2 else x.square().sum(1)
    expected = (lengths.mean(1) / (1 + lengths.mean(1))).sqrt()
    found_lengths = found.square() if x.dim() == 2 else found.square().sum(1)
    assert_allclose(found_lengths.mean(1).sqrt(), expected, rtol=1e-12)
    assert_allclose(found / found.abs().max(), x / x.abs().max(), rtol=1e-12, atol=0.5)


def written_out(products, scalars, vectors, density, species):
    """The docstring's products atom by atom and channel by channel, with matrices."""
    mixed = [
        compressed(density[0] @ products.mix_scalars.weight.T),
        compressed(density[1] @ products.mix_vectors.weight.T),
        compressed(density[2] @ products.mix_tensors.weight.T),
    ]
    big = matrices(mixed[2])
    invariants, parts = torch.zeros(N, 10, F).double(), torch.zeros(N, 3, 3, F).double()
    for i in range(N):
        for f in range(F):
            s1, s2 = (mixed[0][i, c * F + f] for c in range(2))
            v1, v2, v3 = (mixed[1][i, :, c * F + f] for c in range(3))
            t1, t2, t3 = (big[i, :, :, c * F + f] for c in range(3))
            invariants[i, :, f] = torch.stack(
                [
                    scalars[i, f],
                    s1,
                    s1 * s2,
                    v1 @ v2,
                    (t1 * t2).sum(),
                    v2 @ t1 @ v1,
                    torch.trace(t1 @ t2 @ t3),
                    (t1 @ v1) @ (t1 @ v1),
                    v3 @ t3 @ t1 @ v1,
                    (t1 @ t2).square().sum(),
                ]
            )
            parts[i, 0, :, f], parts[i, 1, :, f], parts[i, 2, :, f] = v1, t1 @ v1, t3 @ t1 @ v1
    weighted = invariants.flatten(1) * products.by_species.weight[species]
    change = products.update(weighted)
    sizes = change[:, F:].view(N, 3, 1, F)
    moved = (parts * sizes).transpose(1, 2).flatten(2) @ products.to_vectors.weight.T
    return scalars + change[:, :F], vectors + moved


def test_products_are_those_of_the_docstring():
    torch.manual_seed(4)
    products = Products(F, 2, last=False).double()
    torch.nn.init.normal_(products.by_species.weight)
    scalars, vectors = torch.randn(N, F).double(), torch.randn(N, 3, F).double()
    species = torch.tensor([0, 1, 1, 0])
    found = products(scalars, vectors, densities(), species)
    expected = written_out(products, scalars, vectors, densities(), species)
    for a, b in zip(found, expected, strict=True):
        assert_allclose(a.detach(), b.detach(), atol=1e-12)


def test_products_turn_with_the_densities():
    torch.manual_seed(5)
    products = Products(F, 1, last=False).double()
    scalars, vectors = torch.randn(N, F).double(), torch.randn(N, 3, F).double()
    species, q = torch.zeros(N, dtype=torch.int64), turn()
    plain = products(scalars, vectors, densities(), species)
    moved = torch.einsum("ab,nbf->naf", q, vectors)
    found = products(scalars, moved, turned(densities(), q), species)
    assert_allclose(found[0].detach(), plain[0].detach(), atol=1e-12)
    expected = torch.einsum("ab,nbf->naf", q, plain[1])
    assert_allclose(found[1].detach(), expected.detach(), atol=1e-12)


def test_smooth_where_a_density_vanishes():
    """On the sites of a perfect crystal vectors and tensors are zero."""
    products = Products(2, 1, last=False).double()

    def outcome(scalars, vectors, tensors):
        zero = torch.zeros(1, dtype=torch.int64)
        return products(scalars, vectors, (scalars, vectors, tensors), zero)

    shapes = ((1, 2), (1, 3, 2), (1, 5, 2))
    zeros = tuple(torch.zeros(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    assert torch.autograd.gradcheck(outcome, zeros)
    assert torch.autograd.gradgradcheck(outcome, zeros)
