"""The average of the weights: equal to a slow loop, lent and given back, restored when a run is resumed."""

import copy

import pytest
import torch
from detectron2.engine import SimpleTrainer
from torch import nn

from spt_d2.checkpoint import SelectionCheckpointer
from spt_d2.engine.ema import EMAHook


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def change(model: nn.Module) -> None:
    """What training does to weights, statistics and counters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model(torch.randn(4, 3))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], exactly: bool = True) -> None:
    assert first.keys() == second.keys()
    for name in first:
        tolerance = {"rtol": 0, "atol": 0} if exactly else {}
        torch.testing.assert_close(first[name], second[name], msg=name, **tolerance)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_average_equals_a_slow_loop(decay: float) -> None:
    model = make_model()
    hook = EMAHook(model, decay)
    hook.before_train()
    expected = state(model)
    for _ in range(5):
        change(model)
        hook.after_step()
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value.clone()
    assert expected["1.num_batches_tracked"] == 5
    with hook.average_weights():
        assert_equal(state(model), expected, exactly=False)


def test_weights_come_back_bit_for_bit_and_also_after_an_error() -> None:
    model = make_model()
    hook = EMAHook(model, 0.9)
    hook.before_train()
    change(model)
    hook.after_step()
    trained = state(model)
    with pytest.raises(RuntimeError, match="evaluation"), hook.average_weights():
        assert not torch.equal(model[0].weight, trained["0.weight"])
        raise RuntimeError("evaluation failed")
    assert_equal(state(model), trained)


def test_a_checkpoint_inside_an_evaluation_changes_nothing() -> None:
    model = make_model()
    hook = EMAHook(model, 0.9)
    hook.before_train()
    change(model)
    hook.after_step()
    trained = state(model)
    with hook.average_weights():
        lent = state(model)
        with hook.average_weights():
            assert_equal(state(model), lent)
            assert_equal(hook.state_dict()["trained"], trained)
        assert_equal(state(model), lent)
    assert_equal(state(model), trained)


def test_a_resumed_average_goes_on_as_one_that_never_stopped() -> None:
    model = make_model()
    hook = EMAHook(model, 0.9)
    hook.before_train()
    change(model)
    hook.after_step()
    with hook.average_weights():
        saved_model, saved_hook = state(model), copy.deepcopy(hook.state_dict())

    resumed = make_model()
    resumed.load_state_dict(saved_model)
    resumed_hook = EMAHook(resumed, 0.9)
    resumed_hook.load_state_dict(saved_hook)
    resumed_hook.before_train()
    assert_equal(state(resumed), state(model))

    for some_model, some_hook in ((model, hook), (resumed, resumed_hook)):
        torch.manual_seed(1)
        change(some_model)
        some_hook.after_step()
    with hook.average_weights(), resumed_hook.average_weights():
        assert_equal(state(resumed), state(model))


def test_a_run_with_an_average_is_not_resumed_without_one(tmp_path) -> None:
    """Its checkpoints hold the average as the model, and only the hook can put back what was trained."""

    def run(average: bool, resume: bool) -> None:
        model = make_model()
        trainer = SimpleTrainer(model, [], torch.optim.SGD(model.parameters(), lr=0.1))
        hook = EMAHook(model, 0.9) if average else None
        trainer.register_hooks([hook])
        trainer.iter = 0
        checkpointer = SelectionCheckpointer(model, str(tmp_path), ema=hook, trainer=trainer)
        checkpointer.resume_or_load("", resume=resume)
        if average:
            hook.before_train()
        checkpointer.save("model_0000000")

    run(average=True, resume=False)
    with pytest.raises(ValueError, match="expects an average of the weights .*\nHINT: resume with MODEL.EMA.ENABLED"):
        run(average=False, resume=True)
    run(average=True, resume=True)
    run(average=False, resume=False)
    run(average=False, resume=True)


def test_a_decay_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"EMAHook\(decay=\).*1.0"):
        EMAHook(make_model(), 1.0)
