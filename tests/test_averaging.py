import pytest
import pytorch_lightning as lightning
import torch

from src.averaging import MovingAverage
from tests.test_training import assert_equal, fit, make


class Watch(lightning.Callback):
    """What the weights are after each step, in a validation's batches and at its end."""

    def __init__(self):
        self.steps, self.validated, self.ends = [], [], []

    @staticmethod
    def state(module):
        return {name: tensor.clone() for name, tensor in module.model.state_dict().items()}

    def on_train_batch_end(self, trainer, module, *_):
        self.steps.append(self.state(module))

    def on_validation_batch_start(self, trainer, module, *_):
        self.validated.append(self.state(module))

    def on_validation_end(self, trainer, module):
        self.ends.append(self.state(module))


def test_an_average_is_validated_to_the_end_and_kept(shapes, tmp_path):
    module, data = make(shapes)
    watch = Watch()
    fit(module, data, tmp_path, max_epochs=3, enable_checkpointing=False, callbacks=[watch, MovingAverage(0.6, 2)])
    averaged = dict(watch.steps[0])
    for state in watch.steps[2::2]:
        for name, tensor in state.items():
            whole = not tensor.is_floating_point()
            averaged[name] = tensor if whole else 0.6 * averaged[name] + 0.4 * tensor
    kept = Watch.state(module)
    for name, tensor in averaged.items():
        torch.testing.assert_close(kept[name], tensor, msg=name)
    assert_equal(watch.validated[-1], kept)
    assert_equal(watch.ends[-1], kept)
    assert not torch.equal(watch.steps[-1]["decoder.word.weight"], kept["decoder.word.weight"])
    counters = [name for name in kept if name.endswith("num_batches_tracked")]
    assert counters and all(kept[name].dtype == torch.int64 for name in counters)


def test_what_does_not_learn_stays_as_it_was_to_the_bit(shapes, tmp_path):
    """The key of cached features is the weights' content."""
    module, data = make(shapes, frozen=True)
    before = {k: v.clone() for k, v in module.model.encoder.backbone.state_dict().items()}
    options = {"max_epochs": 20, "limit_val_batches": 0, "enable_checkpointing": False}
    fit(module, data, tmp_path, callbacks=[MovingAverage(0.98, 1)], **options)
    assert_equal(before, module.model.encoder.backbone.state_dict())


@pytest.mark.parametrize(("field", "value"), [("decay", -0.1), ("decay", 1.1), ("update_every_n_steps", 0)])
def test_numbers_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"callbacks.averaging.{field}={value}"):
        MovingAverage(**{field: value})
