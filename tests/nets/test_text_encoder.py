"""The text encoder: padding is not there, order matters, an empty text is possible."""

import pytest
import torch

from verisim.errors import VerisimError
from verisim.nets.text_encoder import TextEncoder


def encoder(**settings):
    torch.manual_seed(0)
    return TextEncoder(
        **{"numbers": 20, "length": 12, "width": 16, "depth": 2, "heads": 4, **settings}
    ).double()


def test_padding_changes_nothing():
    """The same words with 0, 3 or 8 places of padding, alone or beside longer texts: the same tokens, in float64
    to rounding; padding gives zeros and gets no gradient."""
    net = encoder()
    words = torch.tensor([[5, 9, 3, 7]])
    want = net(words)
    for pad in (3, 8):
        row = torch.nn.functional.pad(words, (0, pad))
        batch = torch.cat([row, torch.randint(2, 20, row.shape)])
        got = net(batch)
        assert torch.allclose(got[:1, :4], want, rtol=0, atol=1e-13)
        assert not got[0, 4:].any()
    net(torch.nn.functional.pad(words, (0, 8))).square().sum().backward()
    assert not net.words.weight.grad[0].any() and not net.places.grad[4:].any()
    assert net.words.weight.grad[5].any()


def test_without_its_mask_padding_would_matter():
    """Negative control: were padding a word of its own, the tokens would change."""
    net = encoder()
    words = torch.tensor([[5, 9, 3, 7]])
    other = torch.cat([words, torch.full((1, 3), 4)], 1)
    assert not torch.allclose(net(other)[:, :4], net(words), atol=1e-3)


def test_order_matters_and_empty_is_possible():
    """ "No effusion, nodule" is not "no nodule, effusion"; an empty text gives zeros, not NaN."""
    net = encoder()
    a, b = net(torch.tensor([[2, 3, 4]])), net(torch.tensor([[4, 3, 2]]))
    assert not torch.allclose(a.sum(1), b.sum(1), atol=1e-3)
    assert torch.equal(net(torch.zeros(2, 5, dtype=torch.long)), torch.zeros(2, 5, 16).double())


def test_an_unknown_word_starts_as_nothing():
    """Number 1 begins at zero, so an untrained unknown word is a place and no more."""
    assert not encoder().words.weight[:2].any()


def test_limits():
    """Too many words and impossible widths are refused."""
    with pytest.raises(VerisimError, match=r"13 words; it takes up to 12"):
        encoder()(torch.ones(1, 13, dtype=torch.long))
    with pytest.raises(VerisimError, match=r"width 18 must be a multiple of its 4 heads"):
        encoder(width=18)
