"""The vector quantiser: nearest code, straight-through gradients, moving average, restarts, collapse."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from verisim.errors import VerisimError
from verisim.nets.quantiser import (
    LAPLACE,
    VectorQuantiser,
    perplexity,
    used_share,
    warn_if_collapsed,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def latents(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def quantiser(codes=7, dim=3, seed=1, **settings):
    torch.manual_seed(seed)
    q = VectorQuantiser(codes, dim, **{"restart_below": 0.0, **settings})
    q.started.fill_(True)  # leave the codebook where it is
    return q


@pytest.mark.parametrize("grid", [(5, 4), (3, 4, 2)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_nearest_code_is_that_of_brute_force(grid, offset):
    """argmin over all K of the float64 distance, in 2D and 3D, also far from the origin."""
    q = quantiser(codes=50, dim=6)
    q.codebook += offset
    z = latents(4, 6, *grid) + offset
    found = q.eval()(z)
    rows = z.double().movedim(1, -1)  # (B, *G, D)
    distance = (rows[..., None, :] - q.codebook.double()).square().sum(-1)  # (B, *G, K)
    assert torch.equal(found.codes, distance.argmin(-1))
    assert torch.equal(q.assign(z), distance.argmin(-1))
    torch.testing.assert_close(
        found.embedding.movedim(1, -1), q.codebook[distance.argmin(-1)], rtol=1e-6, atol=1e-6
    )
    assert len(found.codes.unique()) > 10


def test_a_quantised_latent_is_its_own_code():
    """Quantising twice changes nothing."""
    q = quantiser(codes=20, dim=4).eval()
    once = q(latents(3, 4, 5, 5))
    again = q(once.embedding)
    assert torch.equal(once.codes, again.codes) and float(again.commitment.max()) < 1e-12


@pytest.mark.parametrize("update", ["ema", "loss"])
def test_gradient_passes_straight_through(update):
    """d f(z_q) / d z_e is f'(z_q) exactly, and none of it reaches the codebook."""
    q = quantiser(update=update)
    z = latents(2, 3, 4, 4).requires_grad_()
    weight = latents(2, 3, 4, 4, seed=5)
    (q(z).embedding * weight).sum().backward()
    assert torch.equal(z.grad, weight)
    assert not isinstance(q.codebook, torch.nn.Parameter) or q.codebook.grad is None


def test_commitment_and_codebook_losses_move_one_side_each():
    """d/dz_e of commitment is 2 (z_e - e) / n with no gradient to e; the codebook loss is the reverse."""
    q = quantiser(update="loss")
    z = latents(2, 3, 4, 4).requires_grad_()
    found = q(z)
    e = q.embed(found.codes).detach()
    found.commitment.sum().backward(retain_graph=True)
    torch.testing.assert_close(z.grad, 2 * (z.detach() - e) / z[0].numel())
    assert q.codebook.grad is None
    z.grad = None
    found.codebook.sum().backward()
    assert z.grad is None and float(q.codebook.grad.abs().sum()) > 0
    torch.testing.assert_close(found.commitment, found.codebook)
    want = torch.zeros_like(q.codebook)
    rows = (e - z.detach()).movedim(1, -1).reshape(-1, 3) * 2 / z[0].numel()
    want.index_add_(0, found.codes.flatten(), rows)
    torch.testing.assert_close(q.codebook.grad, want)


def test_moving_average_equals_its_closed_form():
    """After T steps: N = g^T N_0 + (1 - g) sum g^(T-t) n_t, m likewise, e = m / smoothed N."""
    g, steps = 0.8, 6
    q = quantiser(codes=5, dim=3, decay=g)
    count, total = torch.ones(5).double(), q.total.double()
    terms = []
    for t in range(steps):
        z = latents(4, 3, 3, 3, seed=t)
        codes = q(z).codes.flatten()
        one_hot = torch.nn.functional.one_hot(codes, 5).double()  # (N, K)
        rows = z.double().movedim(1, -1).reshape(-1, 3)
        terms.append((one_hot.sum(0), one_hot.T @ rows))
    powers = [(1 - g) * g ** (steps - 1 - t) for t in range(steps)]
    count = g**steps * count + sum(p * n for p, (n, _) in zip(powers, terms))
    total = g**steps * total + sum(p * m for p, (_, m) in zip(powers, terms))
    smooth = (count + LAPLACE) / (count.sum() + 5 * LAPLACE) * count.sum()
    torch.testing.assert_close(q.count.double(), count, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(q.codebook.double(), total / smooth[:, None], rtol=1e-5, atol=1e-6)
    usage = sum(p * n for p, (n, _) in zip(powers, terms))
    torch.testing.assert_close(q.usage.double(), usage, rtol=1e-6, atol=1e-6)


def test_evaluation_moves_nothing():
    """Without training mode the codebook and all counts stay as they are."""
    q = quantiser(decay=0.5, restart_below=0.5).eval()
    before = {k: v.clone() for k, v in q.state_dict().items()}
    q(latents(4, 3, 5, 5))
    assert all(torch.equal(v, before[k]) for k, v in q.state_dict().items())


@pytest.mark.parametrize("update", ["ema", "loss"])
def test_restart_moves_exactly_the_dead_codes(update):
    """Codes that nothing chose land on vectors of the batch; the others are where the rule puts them."""
    far = torch.tensor([[50.0, 50.0, 50.0], [-50.0, 50.0, 0.0]])
    made = []
    for below in (0.0, 0.4):
        q = quantiser(codes=6, dim=3, update=update, decay=0.2, restart_below=below)
        with torch.no_grad():
            q.codebook[4:] = far
        if update == "ema":
            q.total[4:] = far
        z = latents(4, 3, 5, 5)
        q(z)
        made.append(q)
    plain, restarted = made
    dead = plain.count < 0.4 * plain.count.mean()
    assert dead[4:].all() and not dead.all()
    assert torch.equal((plain.codebook != restarted.codebook).any(1), dead)
    rows = z.movedim(1, -1).reshape(-1, 3)
    for e in restarted.codebook[dead]:
        assert (rows == e).all(1).any()
    assert (plain.usage[4:] == 0).all() and torch.equal(plain.usage, restarted.usage)  # reports stay honest
    q(z)
    assert (q.usage[4:] > 0).any()  # and a restarted code comes into use


def test_the_first_batch_places_the_codebook():
    """Every code starts on a vector of the first batch; fewer vectors than codes are used twice."""
    for n in (10, 2):
        q = VectorQuantiser(12, 3, decay=0.0, restart_below=0.0)
        z = latents(n, 3, 2, 2)
        rows = z.movedim(1, -1).reshape(-1, 3)
        q._start(rows)
        assert bool(q.started) and all((rows == e).all(1).any() for e in q.codebook)
        assert len(q.codebook.unique(dim=0)) == 12 if n == 10 else len(q.codebook.unique(dim=0)) <= 8


def test_a_batch_with_nan_does_not_enter_the_averages():
    """Training skips such a step; the codebook must survive it too."""
    q = quantiser()
    before = q.codebook.clone()
    z = latents(2, 3, 4, 4)
    z[0, 0, 0, 0] = torch.nan
    q(z)
    assert torch.equal(q.codebook, before) and torch.isfinite(q.count).all()


def test_distances_are_float32_under_autocast():
    """bfloat16 would confuse neighbouring codes; the choice and the loss do not depend on autocast."""
    q = quantiser(codes=400, dim=3).eval()
    z = latents(8, 3, 8, 8)
    plain = q(z)
    with torch.autocast("cpu", torch.bfloat16):
        cast = q(z)
    assert torch.equal(plain.codes, cast.codes) and cast.embedding.dtype == torch.float32
    assert torch.equal(plain.commitment, cast.commitment)
    rounded = z.bfloat16().float()
    assert not torch.equal(q(rounded).codes, plain.codes)  # so the test can fail


def test_perplexity_and_used_share():
    """K for equal counts, 1 for a single code, 2^H between; scale does not matter."""
    assert float(perplexity(torch.full((512,), 3.0))) == pytest.approx(512, rel=1e-12)
    one = torch.zeros(512)
    one[7] = 9
    assert float(perplexity(one)) == 1 and float(used_share(one)) == 1 / 512
    assert float(perplexity(torch.tensor([4.0, 2.0, 2.0, 0.0]))) == pytest.approx(2**1.5, rel=1e-12)
    assert float(used_share(torch.tensor([4.0, 2.0, 2.0, 0.0]))) == 0.75


def test_collapse_is_warned_of():
    """One code for everything: the warning names the perplexity, the limit and what to do. Health is silent."""
    one = torch.zeros(512)
    one[0] = 100
    with pytest.warns(UserWarning, match=r"collapsed: its perplexity is 1\.0 where 512 codes.*restart_below"):
        assert warn_if_collapsed(one)
    assert not warn_if_collapsed(torch.ones(512))


def test_restarts_cure_a_collapse():
    """Latents in eight clusters, all codes but one far away: with restarts every cluster gets a code."""
    centres = 3 * latents(8, 3, seed=3)
    error = {}
    for below in (0.0, 0.1):
        q = quantiser(codes=16, dim=3, decay=0.9, restart_below=below)
        q.codebook[1:] += 100.0
        q.total.copy_(q.codebook)
        torch.manual_seed(0)
        for t in range(150):
            pick = torch.randint(8, (256,), generator=seeded(t))
            z = centres[pick] + 0.05 * latents(256, 3, seed=1000 + t)
            found = q(z[:, :, None, None])
        error[below] = float(found.commitment.mean())
    assert error[0.1] < 0.02 < 1 < error[0.0]


@pytest.mark.parametrize(
    "wrong", [{"codes": 1}, {"dim": 0}, {"decay": 1.0}, {"restart_below": 1.0}, {"restart_below": -0.1}]
)
def test_impossible_settings_are_refused(wrong):
    """One sentence with the allowed ranges."""
    settings = {"codes": 8, "dim": 4, **wrong}
    with pytest.raises(
        VerisimError, match=r"codes >= 2, dim >= 1, 0 <= decay < 1 and 0 <= restart_below < 1"
    ):
        VectorQuantiser(**settings)


WORKER = """
import sys, torch, torch.distributed as dist
from safetensors.torch import save_file
from verisim.nets.quantiser import VectorQuantiser
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
for below in (0.0, 0.9):
    torch.manual_seed(1)
    q = VectorQuantiser(7, 3, decay=0.5, restart_below=below)
    q.started.fill_(True)
    z = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(rank)  # restarts must not depend on it
    for _ in range(3):
        q(z.chunk(2)[rank])
    save_file(q.state_dict(), f"{folder}/{below}-{rank}.safetensors")
dist.destroy_process_group()  # else gloo's threads may still run when the interpreter ends, which aborts it
"""


def test_two_processes_share_one_codebook(tmp_path):
    """Half a batch each gives the averages of the whole batch, and restarts are the same in both."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    workers = [subprocess.Popen([sys.executable, str(script), str(r), str(tmp_path)]) for r in (0, 1)]
    assert [w.wait(timeout=120) for w in workers] == [0, 0]
    load = {(b, r): load_file(tmp_path / f"{b}-{r}.safetensors") for b in (0.0, 0.9) for r in (0, 1)}
    for b in (0.0, 0.9):
        assert all(torch.equal(v, load[b, 1][k]) for k, v in load[b, 0].items())
    assert not torch.equal(load[0.0, 0]["codebook"], load[0.9, 0]["codebook"])
    whole = quantiser(decay=0.5)
    for _ in range(3):
        whole(latents(8, 3, 4, 4))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(load[0.0, 0][name], value, rtol=1e-5, atol=1e-6)
