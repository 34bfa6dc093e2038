from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lgo_cli.checkpoint import snapshot
from lgo_cli.config import TrainConfig
from lgo_cli.errors import InputError, UsageError
from lgo_cli.models.registry import recipe_of
from lgo_cli.results import Recipe
from lgo_cli.runs.loaded import machine_settings
from lgo_cli.samples import Samples
from lgo_cli.seeding import derive_seed, generator
from lgo_cli.training.loop import (
    DivergenceError,
    Training,
    crop_and_flip,
    num_batches,
)
from lgo_cli.training.optimizers import make_optimizer
from lgo_cli.training.recipe import learning_rate, resolve_recipe

RECIPE = Recipe(
    epochs=4, batch_size=16, optimizer="sgd", lr=0.1, momentum=0.9, nesterov=False,
    weight_decay=1e-3, schedule="cosine", warmup_epochs=1, augment="none",
    loss="cross_entropy", label_smoothing=0.0,
)  # fmt: skip


def _samples(n: int) -> Samples:
    draw = torch.Generator().manual_seed(n)
    inputs = torch.randn(n, 6, generator=draw)
    return Samples(inputs, (inputs[:, 0] > 0).long())


def _training(
    recipe: Recipe = RECIPE, n: int = 100, seed: int = 0, device: str = "cpu"
) -> Training:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)
        )
    train, test = (_samples(size).to(torch.device(device), torch.float32) for size in (n, 50))
    return Training(model.to(device), train, test, recipe, seed=seed)


def _equal(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


class _Auxiliary(nn.Module):
    """Logits, and in training mode more beside them, as GoogLeNet and Inception have."""

    def __init__(self, kind: type = dict) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> object:
        logits = self.head(x)
        return self.kind({"logits": logits, "aux": logits}) if self.training else logits


@pytest.mark.parametrize(("kind", "what"), [(dict, "a dict"), (tuple, "a tuple")])
def test_outputs_of_training_mode_are_looked_at(kind: type, what: str) -> None:
    training = Training(_Auxiliary(kind), _samples(40), _samples(20), RECIPE)
    with pytest.raises(InputError, match=f"^in training mode the model .* returned {what}$") as e:
        training.run()
    assert "in training mode too" in str(e.value.hint)


def test_sparse_gradients_are_refused_before_training() -> None:
    with torch.random.fork_rng():
        model = nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 2))
    samples = Samples(torch.arange(12).reshape(4, 3) % 9, torch.tensor([0, 1, 0, 1]))
    with pytest.raises(InputError, match="0 is an embedding with sparse=True") as caught:
        Training(model, samples, samples, RECIPE)
    assert caught.value.hint == "sparse=False, which is the same function of the same weights"


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_resumed_training_has_the_same_bits(optimizer: str) -> None:
    recipe = RECIPE.model_copy(update={"optimizer": optimizer, "lr": 0.01})
    whole = _training(recipe)
    states = []
    whole.run(on_epoch=lambda training: states.append(_copy(training.state())))
    for state in states[:-1]:
        resumed = _training(recipe)
        resumed.load_state(state)
        resumed.run()
        assert _equal(whole.model, resumed.model)
        assert whole.rows == resumed.rows
        assert resumed.final_lr == whole.final_lr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_training_on_a_gpu(optimizer: str) -> None:
    """With dropout, whose draws are the GPU's; a resumed one too has the same bits."""
    recipe = RECIPE.model_copy(update={"optimizer": optimizer, "lr": 0.01})
    generators = torch.cuda.get_rng_state_all()
    whole, resumed = (_training(recipe, device="cuda") for _ in range(2))
    states = []
    with machine_settings(None, "cuda"):
        whole.run(on_epoch=lambda training: states.append(_copy(training.state())))
        resumed.load_state(states[1])
        resumed.run()
    assert all(parameter.is_cuda for parameter in whole.model.parameters())
    assert _equal(whole.model, resumed.model)
    assert whole.rows == resumed.rows
    assert whole.rows[-1].train_loss < whole.rows[0].train_loss
    for before, after in zip(generators, torch.cuda.get_rng_state_all(), strict=True):
        assert torch.equal(before, after)


def _copy(state: dict[str, object]) -> dict[str, object]:
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return dict(torch.load(buffer, weights_only=True))


def test_training_is_what_torch_does_by_hand() -> None:
    """Two epochs of SGD against a loop written out, with the same order and noise in each."""
    recipe = RECIPE.model_copy(update={"epochs": 2, "warmup_epochs": 0, "schedule": "constant"})
    ours, twin = _training(recipe, n=40), _training(recipe, n=40).model
    ours.run()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    samples = _samples(40)
    twin.train()
    for epoch in range(2):
        order = torch.randperm(40, generator=generator(0, "train", "order", epoch))
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(0, "train", "noise", epoch))
            for batch in order.split(16):
                optimizer.zero_grad()
                outputs = twin(samples.inputs[batch])
                nn.functional.cross_entropy(outputs, samples.labels[batch]).backward()
                optimizer.step()
    # The same operations, but for mean() in another place: a few ulps.
    for a, b in zip(ours.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ("adam", torch.optim.Adam, {}),
        ("adamw", torch.optim.AdamW, {}),
    ],
)
def test_optimisers_are_pytorchs_to_the_bit(
    name: str, kind: type[torch.optim.Optimizer], options: dict[str, float]
) -> None:
    values = {**RECIPE.model_dump(), "momentum": 0.0, **options, "optimizer": name}
    own, plain = (_samples(9).inputs.requires_grad_() for _ in range(2))
    before = dict(vars(kind))
    ours = make_optimizer([own], Recipe.model_validate(values))
    assert dict(vars(kind)) == before  # PyTorch's own class is as it was
    theirs = kind([plain], lr=0.1, weight_decay=1e-3, **options)
    for weights, optimizer in ((own, ours), (plain, theirs)):
        for _ in range(3):
            optimizer.zero_grad()
            (weights**4).sum().backward()
            optimizer.step()
            optimizer.load_state_dict(_copy(optimizer.state_dict()))
    assert isinstance(ours, kind)
    assert torch.equal(own, plain)
    assert not torch.equal(own, _samples(9).inputs)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_seed_decides() -> None:
    a, b, c = _training(seed=1), _training(seed=1), _training(seed=2)
    for training in (a, b, c):
        training.run()
    assert _equal(a.model, b.model)
    assert not _equal(a.model, c.model)


def test_no_generator_is_seeded_that_is_not_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    training = _training()
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    training.run()
    assert not seeded
    assert torch.equal(torch.get_rng_state(), before)


def test_log_has_a_row_an_epoch_and_the_untrained_model() -> None:
    training = _training()
    training.run()
    assert [row.epoch for row in training.rows] == [0, 1, 2, 3, 4]
    assert [row.step for row in training.rows] == [0, 7, 14, 21, 28]
    last = training.rows[-1]
    assert last.train_loss == training.evaluate(training.train).loss
    assert last.test_accuracy == training.evaluate(training.test).accuracy
    assert last.train_accuracy > training.rows[0].train_accuracy
    # The rate that is logged is the one that the last step took.
    (group,) = training.optimizer.param_groups
    assert (
        group["lr"]
        == last.learning_rate
        == training.final_lr
        == pytest.approx(learning_rate(RECIPE, 27, 7))
    )
    assert training.rows[0].learning_rate == learning_rate(RECIPE, 0, 7)


def test_checkpoints_are_those_of_their_steps() -> None:
    kept: dict[int, dict[str, torch.Tensor]] = {}
    training = _training()
    training.run(save_every=7, on_checkpoint=lambda step, state: kept.update({step: state}))
    assert list(kept) == [7, 14, 21, 28]
    final = snapshot(training.model)
    assert all(torch.equal(kept[28][name], final[name]) for name in final)
    assert not torch.equal(kept[7]["0.weight"], kept[14]["0.weight"])


def test_divergence_says_where_and_keeps_the_last_finite_weights() -> None:
    recipe = RECIPE.model_copy(
        update={"lr": 1e6, "loss": "squared_error", "epochs": 50, "warmup_epochs": 0}
    )
    training = _training(recipe)
    training.model[1] = nn.Identity()
    training = Training(training.model, training.train, training.test, recipe)
    with pytest.raises(DivergenceError, match=r"at step \d+ of 350, with learning rate") as caught:
        training.run()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in caught.value.state.values())


def test_weights_that_overflow_behind_a_finite_loss_are_not_kept() -> None:
    recipe = RECIPE.model_copy(update={"lr": 1e37, "schedule": "constant", "warmup_epochs": 0})
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(6, 2))
    samples = Samples(1000 * _samples(100).inputs, _samples(100).labels)
    training = Training(model, samples, samples, recipe)
    kept: list[int] = []
    with pytest.raises(DivergenceError, match=r"^0\.weight became nan at step 1 of 28") as caught:
        training.run(save_every=1, on_checkpoint=lambda step, state: kept.append(step))
    assert not kept
    assert all(bool(torch.isfinite(tensor).all()) for tensor in caught.value.state.values())


def test_divergence_names_its_step() -> None:
    training = _training()
    calls = 0

    def spoil(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += module.training
        return output * (torch.nan if module.training and calls == 10 else 1)

    training.model.register_forward_hook(spoil)
    rate = f"{learning_rate(RECIPE, 9, 7):g}"
    with pytest.raises(DivergenceError, match=f"nan at step 10 of 28, with learning rate {rate}$"):
        training.run()


def test_batches_of_one_sample_are_steps_where_all_are() -> None:
    with torch.random.fork_rng():
        model = nn.Linear(6, 2)
    for n, batch_size, num_steps in ((3, 1, 12), (1, 16, 4)):
        recipe = RECIPE.model_copy(update={"batch_size": batch_size})
        training = Training(model, _samples(n), _samples(4), recipe)
        training.run()
        assert training.step == training.total_steps == num_steps


def test_single_last_sample_is_left_out_for_batch_norm() -> None:
    assert [num_batches(n, 16) for n in (1, 16, 17, 18, 33)] == [1, 1, 1, 2, 2]
    training = _training(n=33)
    training.run()
    assert training.step == training.total_steps == 8


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]),
        ("step", [0.05, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
        ("cosine", [0.05, 0.1] + [0.05 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]),
    ],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    recipe = RECIPE.model_copy(update={"schedule": schedule})
    rates = [learning_rate(recipe, step, 2) for step in range(8)]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_recipe_is_the_models_where_the_user_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = resolve_recipe(TrainConfig(model="resnet20", dataset="cifar10"))
    assert (recipe.optimizer, recipe.lr, recipe.momentum) == ("sgd", 0.1, 0.9)
    assert (recipe.weight_decay, recipe.schedule, recipe.augment) == (1e-4, "step", "crop-flip")
    assert resolve_recipe(TrainConfig(model="resnet20", dataset="digits")).augment == "none"
    assert resolve_recipe(TrainConfig(model="resnet20", epochs=0)).epochs == 0
    adam = resolve_recipe(TrainConfig(model="resnet20", optimizer="adam"))
    assert (adam.lr, adam.momentum) == (1e-3, 0.0)
    other = replace(
        recipe_of("resnet20"), milestones=(0.25,), gamma=0.5, optimizer="adam", momentum=0.0
    )
    monkeypatch.setattr("lgo_cli.training.recipe.recipe_of", lambda model: other)
    recipe = resolve_recipe(TrainConfig(epochs=4, lr=1.0))
    assert [learning_rate(recipe, step, 2) for step in range(8)] == [1.0, 1.0, *[0.5] * 6]
    sgd = resolve_recipe(TrainConfig(optimizer="sgd"))
    assert (sgd.lr, sgd.momentum) == (0.1, 0.9)


@pytest.mark.parametrize(
    "values", [{"optimizer": "adam", "momentum": 0.9}, {"optimizer": "adamw", "nesterov": True},
               {"momentum": 0.0, "nesterov": True}],
)  # fmt: skip
def test_options_that_do_not_go_together(values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="momentum"):
        resolve_recipe(TrainConfig.model_validate(values))


def test_crop_and_flip_moves_pixels_and_makes_none() -> None:
    images = torch.arange(1.0, 1 + 2 * 3 * 8 * 8).view(2, 3, 8, 8)
    draw = torch.Generator().manual_seed(0)
    seen_flip = seen_shift = False
    for _ in range(20):
        out = crop_and_flip(images, draw)
        assert out.shape == images.shape
        for before, after in zip(images, out, strict=True):
            inside = after[after > 0]
            assert set(inside.tolist()) <= set(before.flatten().tolist())
            row = after[0][(after[0] > 0).any(1)][0]
            steps = set(torch.diff(row[row > 0]).tolist())
            assert steps <= {1.0} or steps <= {-1.0}
            seen_flip |= steps == {-1.0}
            seen_shift |= len(inside) < before.numel()
    assert seen_flip
    assert seen_shift
    # A pixel in the middle comes to each place that four pixels either way reach.
    images = torch.zeros(4000, 1, 9, 9)
    images[:, :, 4, 4] = 1
    assert bool(crop_and_flip(images, draw).sum(dim=(0, 1)).all())


def test_each_epoch_has_crops_of_its_own() -> None:
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    image = torch.arange(64.0).view(1, 1, 8, 8).expand(16, 1, 8, 8)
    samples = Samples(image / 64, torch.arange(16) % 2)
    seen: list[torch.Tensor] = []

    def see(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if module.training:
            seen.append(inputs[0].sort(0).values)

    model.register_forward_pre_hook(see)
    recipe = RECIPE.model_copy(update={"epochs": 2, "augment": "crop-flip"})
    Training(model, samples, samples, recipe).run()
    assert not torch.equal(*seen)
    assert not torch.equal(seen[0], samples.inputs)


def test_csv_has_no_clock_and_full_precision(small_run: Path) -> None:
    with (small_run / "train.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == [
        "epoch", "step", "learning_rate", "train_loss", "train_accuracy", "test_loss",
        "test_accuracy",
    ]  # fmt: skip
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    assert all(float(row["train_loss"]).hex() for row in rows)
