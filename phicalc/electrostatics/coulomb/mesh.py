"""The smooth, long-ranged part of a crystal's Coulomb sum, on a mesh: O(N log N) per application.

Charges are spread on a mesh, their waves multiplied by the interaction, and the potential gathered
back (particle mesh: R. W. Hockney and J. W. Eastwood, Computer Simulation Using Particles; U.
Essmann et al., doi:10.1063/1.470117). All that does not depend on the charges is built once per
geometry. Charges of C widths may need a mesh each; mostly C = 1.

The spreading function is (1 − z²)² exp(β(√(1 − z²) − 1)), an "exponential of semicircle" (A. H.
Barnett et al., doi:10.1137/18M120885X) with two continuous derivatives, an order of magnitude more
accurate than a B-spline of equal support: for 648 atoms of water with P = 8 and the mesh of
ε = 1e-7, forces are off by 1.4e-6 eV/Å instead of 2.2e-5. It is also why this is not torch-pme's
mesh, whose interpolation ends at 7 points per axis; ``particle_mesh.py`` has the other reasons.
"""

import math
from typing import List, NamedTuple, Tuple

import torch
from torch import Tensor

POINTS_PER_ATOM: int = 1000
"""Most mesh points, ten times those of water: where there would be more, most are in a vacuum."""


class MeshRule(NamedTuple):
    """What an accuracy ε comes to."""

    split_width: float  # η | Å | the widths beyond which charges are smooth
    spacing: float  # Å | of the mesh
    order: int  # P | mesh points that an atom spreads to along each axis
    decay: float  # β


def mesh_rule(accuracy: float, cutoff: float) -> MeshRule:
    """η from erfc(r_c/2η) = ε, and the spacing h from exp(−(πη/h)²) = ε; cutoff | Å."""
    reach = 1.0
    while math.erfc(reach) > accuracy:
        reach += 0.01
    split_width = cutoff / (2.0 * reach)
    ratio = math.pi / math.sqrt(-math.log(accuracy))
    order = math.ceil(1.0 - math.log10(accuracy))
    # The best β of scans over P and h/η, errors of forces against Ewald's sum.
    return MeshRule(split_width, ratio * split_width, order, order * (1.9 - 2.0 * (ratio - 0.78)))


def affordable_spacing(
    cell: Tensor, spacing: float, num_atoms: int, per_atom: int = POINTS_PER_ATOM
) -> float:
    """The spacing | Å wanted, or the next one whose mesh in this cell has not too many points.

    It grows by powers of 2^¼, so that a cell that breathes keeps its spacing.
    """
    shape = mesh_shape(cell, spacing)
    while shape[0] * shape[1] * shape[2] > per_atom * num_atoms:
        spacing *= 2.0**0.25
        shape = mesh_shape(cell, spacing)
    return spacing


class Mesh(NamedTuple):
    """Constants of one geometry. N atoms, P³ mesh points each, C meshes of n₁×n₂×n₃ points."""

    shape: List[int]  # n₁, n₂, n₃
    inverse: Tensor  # (3, 3) | 1/Å | of the cell
    points: Tensor  # (N·P³,) int64 | mesh points around each atom, in the mesh of its class
    spread: Tensor  # (N, P³) | what each of them gets of its charge
    gather: Tensor  # (N, C·n₁·n₂·n₃) CSR | the same as a matrix
    axes: Tensor  # (N, 3, P) | the spreading function along each axis
    slopes: Tensor  # (N, 3, P) | its derivative, per mesh spacing
    kernel: Tensor  # (C, C, n₁, n₂, n₃/2 + 1) | 1/Å | interaction of the waves of two meshes
    variances: Tensor  # (C, C) | Å² | v, the sum of the squared widths of two classes
    waves: Tensor  # (n₁·n₂·(n₃/2 + 1), 3) | 1/Å | k


def build_mesh(
    positions: Tensor,
    cell: Tensor,
    shape: List[int],
    classes: Tensor,
    variances: Tensor,
    rule: MeshRule,
) -> Mesh:
    """Everything that the geometry alone decides; constant, in units of k_e.

    Parameters
    ----------
    positions, cell
        (N, 3), (3, 3) | Å
    shape
        n₁, n₂, n₃ of the mesh, see `mesh_shape`
    classes
        (N,) int64 | of width, 0 … C − 1
    variances
        (C, C) | Å² | v: classes a and b interact by erf(r/√(2 v_ab))/r, without k = 0
    """
    inverse, _ = torch.linalg.inv_ex(cell, check_errors=cell.device.type == "cpu")
    sizes = mesh_sizes(shape, cell)
    first, axes, slopes = spreading_at(torch.mm(positions, inverse) * sizes, rule)
    steps = torch.arange(rule.order, device=cell.device)
    at = torch.remainder(first[:, :, None] + steps, sizes.long()[None, :, None])
    row = at[:, 0, :, None] * shape[1] + at[:, 1, None, :]
    row = row + (classes * (shape[0] * shape[1]))[:, None, None]
    points = (row[:, :, :, None] * shape[2] + at[:, 2, None, None, :]).view(-1)
    plane = axes[:, 0, :, None] * axes[:, 1, None, :]
    spread = (plane[:, :, :, None] * axes[:, 2, None, None, :]).flatten(1)
    rows = torch.arange(positions.shape[0] + 1, device=cell.device) * spread.shape[1]
    size = [positions.shape[0], variances.shape[0] * shape[0] * shape[1] * shape[2]]
    gather = torch.sparse_csr_tensor(
        rows, points, spread.view(-1), size, dtype=spread.dtype, device=spread.device
    )
    waves, kernel = wave_kernel(cell, inverse, shape, variances, rule)
    return Mesh(shape, inverse, points, spread, gather, axes, slopes, kernel, variances, waves)


def mesh_shape(cell: Tensor, spacing: float) -> List[int]:
    """Mesh points along each vector of a cell (3, 3) | Å, about so far | Å from each other."""
    lengths = torch.linalg.vector_norm(cell, dim=1)
    return [mesh_size(float(lengths[axis]), spacing) for axis in range(3)]


def mesh_sizes(shape: List[int], like: Tensor) -> Tensor:
    """n₁, n₂, n₃ as a tensor (3,), made where it is needed rather than sent there."""
    axes: List[Tensor] = []
    for size in shape:
        axes.append(torch.full([1], float(size), dtype=like.dtype, device=like.device))
    return torch.cat(axes)


def mesh_size(length: float, spacing: float) -> int:
    """An even product of 2, 3 and 5, about as many points as a cell vector | Å needs or more."""
    size = max(4, 2 * math.ceil(0.49 * length / spacing))
    while not is_smooth(size):
        size += 2
    return size


def is_smooth(number: int) -> bool:
    """Whether 2, 3 and 5 are the only prime factors: what fast Fourier transforms like."""
    for factor in (2, 3, 5):
        while number % factor == 0:
            number = number // factor
    return number == 1


def spreading(z: Tensor, decay: float) -> Tuple[Tensor, Tensor]:
    """The spreading function, zero beyond |z| = 1, and its derivative."""
    rest = (1.0 - z * z).clamp(min=0.0)
    root = rest.sqrt()
    decayed = rest * torch.exp(decay * (root - 1.0))
    return rest * decayed, -z * decayed * (4.0 + decay * root)


def spreading_at(coordinates: Tensor, rule: MeshRule) -> Tuple[Tensor, Tensor, Tensor]:
    """First mesh point (N, 3) of atoms at (N, 3) mesh spacings, weights and slopes (N, 3, P)."""
    first = torch.ceil(coordinates - 0.5 * rule.order)
    steps = torch.arange(rule.order, dtype=coordinates.dtype, device=coordinates.device)
    scale = 2.0 / rule.order
    z = ((coordinates - first)[:, :, None] - steps) * scale
    value, slope = spreading(z, rule.decay)
    return first.long(), value, slope * scale


def spreading_transform(size: int, rule: MeshRule, like: Tensor) -> Tensor:
    """Fourier transform of the spreading function at the n waves of an axis: (n,)."""
    nodes = 96
    angle = (torch.arange(nodes, dtype=like.dtype, device=like.device) + 0.5) * (math.pi / nodes)
    value, _ = spreading(torch.cos(angle), rule.decay)
    value = value * torch.sin(angle) * (0.5 * rule.order * math.pi / nodes)
    wave = wave_numbers(size, like) * (math.pi * rule.order / size)
    return torch.mv(torch.cos(wave[:, None] * torch.cos(angle)[None, :]), value)


def wave_numbers(size: int, like: Tensor) -> Tensor:
    """0, 1, … n/2, 1 − n/2, … −1 of an even n: (n,)."""
    count = torch.arange(size, dtype=like.dtype, device=like.device)
    return torch.where(count > size // 2, count - size, count)


def wave_kernel(
    cell: Tensor, inverse: Tensor, shape: List[int], variances: Tensor, rule: MeshRule
) -> Tuple[Tensor, Tensor]:
    """Waves (K, 3) | 1/Å and (4π/V) exp(−k²v/2)/k² over the transforms of spreading, but k = 0.

    The mesh's number of points is in it, which an inverse Fourier transform divides by.
    """
    half = shape[2] // 2 + 1
    orders = torch.cartesian_prod(
        wave_numbers(shape[0], cell),
        wave_numbers(shape[1], cell),
        torch.arange(half, dtype=cell.dtype, device=cell.device),
    )
    waves = torch.mm(orders, 2.0 * math.pi * inverse.t())
    square = (waves * waves).sum(1).view(shape[0], shape[1], half)
    smooth = spreading_transform(shape[0], rule, cell)[:, None, None]
    smooth = smooth * spreading_transform(shape[1], rule, cell)[None, :, None]
    smooth = smooth * spreading_transform(shape[2], rule, cell)[None, None, :half]
    factor = square * smooth * smooth
    factor[0, 0, 0] = 1.0
    points = float(shape[0] * shape[1] * shape[2])
    bare = (4.0 * math.pi * points / torch.linalg.det(cell).abs()) / factor
    bare[0, 0, 0] = 0.0
    decays = torch.exp(-0.5 * variances[:, :, None, None, None] * square[None, None])
    return waves, bare[None, None] * decays


def charge_waves(mesh: Mesh, charges: Tensor) -> Tensor:
    """Fourier transform of the charges on their meshes: (C, n₁, n₂, n₃/2 + 1) complex."""
    classes = mesh.variances.shape[0]
    shape = [classes, mesh.shape[0], mesh.shape[1], mesh.shape[2]]
    grid = torch.zeros(
        classes * mesh.shape[0] * mesh.shape[1] * mesh.shape[2],
        dtype=charges.dtype,
        device=charges.device,
    )
    grid = grid.index_add(0, mesh.points, (mesh.spread * charges[:, None]).view(-1))
    waves: Tensor = torch.fft.rfftn(grid.view(shape), dim=[1, 2, 3])
    return waves


def mesh_potential(mesh: Mesh, waves: Tensor) -> Tensor:
    """Potential | e/Å at all mesh points (C·n₁·n₂·n₃,) of charges, given as their waves."""
    if mesh.variances.shape[0] == 1:
        product = waves * mesh.kernel[0]
    else:
        product = (mesh.kernel * waves[None]).sum(1)
    potential: Tensor = torch.fft.irfftn(product, s=mesh.shape, dim=[1, 2, 3])
    return potential.view(-1)


def apply_mesh(mesh: Mesh, charges: Tensor) -> Tensor:
    """Long-ranged potential (N,) | e/Å of charges (N,) | e."""
    return torch.mv(mesh.gather, mesh_potential(mesh, charge_waves(mesh, charges)))


def typical_density(mesh: Mesh, amounts: Tensor) -> Tensor:
    """Density () | 1/Å³ of amounts (N,) where they are: about the mean of a liquid.

    The density on the mesh is gathered at the atoms. Of that, which is high as every atom sees
    itself, a share is taken, a little more than the mean for water.
    """
    grid = torch.zeros(mesh.gather.shape[1], dtype=amounts.dtype, device=amounts.device)
    grid = grid.index_add(0, mesh.points, (mesh.spread * amounts[:, None]).view(-1))
    per_point = mesh.spread.sum() / mesh.spread.shape[0]
    seen = torch.dot(torch.mv(mesh.gather, grid), amounts) / amounts.sum()
    points = mesh.shape[0] * mesh.shape[1] * mesh.shape[2]
    density: Tensor = 0.7 * seen * points * torch.linalg.det(mesh.inverse).abs() / per_point**2
    return density


def mesh_field(mesh: Mesh, potential: Tensor) -> Tensor:
    """Gradient (N, 3) | e/Å² at the atoms of a potential on the mesh."""
    order = mesh.axes.shape[2]
    num_atoms = mesh.axes.shape[0]
    near = potential.index_select(0, mesh.points).view(num_atoms, order * order, order)
    x, y, z = mesh.axes[:, 0], mesh.axes[:, 1], mesh.axes[:, 2]
    both = torch.stack([z, mesh.slopes[:, 2]], 2)  # (N, P, 2)
    lines = torch.matmul(near, both).view(num_atoms, order, order, 2)
    along_z = (torch.matmul(y[:, None, None, :], lines)[:, :, 0, 1] * x).sum(1)
    plane = torch.matmul(lines[:, :, :, 0], torch.stack([y, mesh.slopes[:, 1]], 2))  # (N, P, 2)
    along_y = (plane[:, :, 1] * x).sum(1)
    along_x = (plane[:, :, 0] * mesh.slopes[:, 0]).sum(1)
    sizes = mesh_sizes(mesh.shape, potential)
    return torch.mm(torch.stack([along_x, along_y, along_z], 1) * sizes, mesh.inverse.t())


def mesh_virial(mesh: Mesh, waves: Tensor) -> Tensor:
    """dE/dε (3, 3) | e²/Å of E = ½ Σ_i q_i φ_i, the mesh following the cell."""
    points = float(mesh.shape[0] * mesh.shape[1] * mesh.shape[2])
    half = [mesh.shape[2] // 2 + 1]
    weight = torch.full(half, 1.0 / points, dtype=mesh.waves.dtype, device=waves.device)
    # All others stand for k and −k. Halved in place: TorchScript would round a number that is
    # assigned to an element to the default dtype.
    weight[0].mul_(0.5)
    weight[-1].mul_(0.5)
    energy = torch.zeros_like(mesh.waves[:, 0])
    stretch = torch.zeros_like(energy)
    for a in range(mesh.variances.shape[0]):
        for b in range(mesh.variances.shape[0]):
            term = (waves[a].real * waves[b].real + waves[a].imag * waves[b].imag) * weight
            term = (term * mesh.kernel[a, b]).view(-1)
            energy = energy + term
            stretch = stretch + term * mesh.variances[a, b]
    square = (mesh.waves * mesh.waves).sum(1)
    square[0] = 1.0
    stretch = stretch + 2.0 * energy / square
    virial = torch.mm(mesh.waves.t(), mesh.waves * stretch[:, None])
    return virial - energy.sum() * torch.eye(3, dtype=energy.dtype, device=energy.device)
