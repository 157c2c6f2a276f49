import pytest
import torch

from src.dropout import Dropout


@pytest.mark.parametrize("share", [0.1, 0.5, 0.3])
def test_drops_its_share_and_keeps_the_mean(share):
    torch.manual_seed(0)
    dropped = Dropout(share)(torch.ones(400, 1001))
    assert float((dropped == 0).float().mean()) == pytest.approx(share, abs=0.004)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.008)
    assert len(dropped.unique()) == 2
    rows, columns = (dropped == 0).float().mean(1), (dropped == 0).float().mean(0)
    for each, count in ((rows, 1001), (columns, 400)):  # as independent draws scatter, in every place
        assert float(each.std()) == pytest.approx((share * (1 - share) / count) ** 0.5, rel=0.2)


def test_the_four_draws_of_a_number_are_independent():
    torch.manual_seed(1)
    drawn = (Dropout(0.5)(torch.ones(40_000, 4)) == 0).float()
    assert torch.corrcoef(drawn.T).sub(torch.eye(4)).abs().max() < 0.02


def test_gradients_pass_where_values_do_and_the_seed_decides():
    x = torch.randn(5, 7, dtype=torch.bfloat16, requires_grad=True)
    torch.manual_seed(3)
    first = Dropout(0.5)(x)
    first.sum().backward()
    torch.manual_seed(3)
    assert torch.equal(first, Dropout(0.5)(x))
    assert torch.equal(x.grad, torch.where(first == 0, 0.0, 2.0).to(x.dtype))
    assert first.dtype == torch.bfloat16


def test_nothing_happens_in_evaluation_or_at_zero():
    x = torch.randn(3)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_nearly_all_may_be_dropped():
    assert Dropout(0.999999)(torch.ones(100)).isfinite().all()
