import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import loop_job
import numpy as np
import pytest
import torch
from golden import U
from loop_job import ALL, BASE, RECORDS, TOTAL, job, same
from torch import nn

from trainer.data.loader import LoadError, Samples
from trainer.errors import ConfigError, DataError, TrainingError, WeightsError
from trainer.interrupt import Interrupted
from trainer.methods.cam import Cam, Config
from trainer.run import Metrics
from trainer.training.checkpoints import Checkpoints
from trainer.training.devices import make_fabric
from trainer.training.loop import Trainer, step_rng
from trainer.training.optimiser import (
    Training,
    held_poly,
    make_optimizer,
    open_poly,
    poly,
    set_rate,
)

PLAIN = Training(**BASE)
VARIANTS = {
    "plain": PLAIN,
    "everything": ALL,
    "adam": replace(PLAIN, optimizer="adam", lr=1e-3, clip=0.5, warmup=5),
    "bf16": replace(PLAIN, precision="bf16", momentum="code"),
}


def stop_at(call: int):
    return lambda n: signal.raise_signal(signal.SIGTERM) if n == call else None


def rows(folder: Path) -> list[tuple[str, ...]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


def losses(folder: Path) -> dict[str, str]:
    """Step -> loss; a step that was logged twice fails."""
    logged = [(row[2], row[4]) for row in rows(folder) if row[3] == "loss"]
    assert len(logged) == len(dict(logged))
    return dict(logged)


def test_golden_poly_sgd():
    w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    config = Training(lr=0.1, weight_decay=0.01, momentum="code")
    optimizer = make_optimizer([{"params": [w], "lr": 0.1, "weight_decay": 0.01}], config)
    assert optimizer.param_groups[0]["momentum"] == 0.01
    rates, values = [], []
    for step in range(12):
        rates.append(set_rate(optimizer, step, 10, config))
        optimizer.zero_grad()
        w.square().sum().backward()
        optimizer.step()
        values.append(w.tolist())
    for step, expected in (
        (1, (0.799, 1.598)),
        (2, (0.651101828, 1.302203655)),
        (10, (0.282781035, 0.565562070)),
    ):
        torch.testing.assert_close(values[step - 1], list(expected), rtol=1e-6, atol=0)
    assert rates[0] == 0.1
    assert rates[1] == pytest.approx(0.0909532576, abs=1e-10)
    assert rates[9:] == pytest.approx([0.0125892541] * 3, abs=1e-10)


def test_momentum_is_a_knob_and_groups_keep_their_factor():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [
        {"params": [p], "lr": lr, "weight_decay": 0.0} for p, lr in zip(parameters, (0.1, 1.0))
    ]
    config = Training(momentum=0.9, warmup=4)
    optimizer = make_optimizer(groups, config)
    assert [g["momentum"] for g in optimizer.param_groups] == [0.9, 0.9]
    assert not any(g["nesterov"] or g["dampening"] for g in optimizer.param_groups)
    assert set_rate(optimizer, 0, 8, config) == pytest.approx(0.1 / 4)
    assert set_rate(optimizer, 6, 8, config) == pytest.approx(0.1 * poly(6, 8))
    assert optimizer.param_groups[1]["lr"] == pytest.approx(10 * optimizer.param_groups[0]["lr"])


def test_published_schedules_of_segmenters():
    held = [held_poly(step, 20_000) for step in range(20_000)]
    for i in (1, 10, 11, 12_345, 20_000):
        assert held[i - 1] == pytest.approx((1 - 10 * ((i - 1) // 10) / 20_000) ** 0.9, rel=1e-12)
    assert len(set(held)) == 2000
    assert held[0] == held[9] == 1
    assert 2.5e-4 * held[10] == pytest.approx(2.4988749718e-04, rel=1e-9)
    assert 2.5e-4 * held[-1] == pytest.approx(2.6730846869e-07, rel=1e-9)
    for t in (0, 1, 12_345, 19_999):
        assert open_poly(t, 20_000) == pytest.approx((1 - t / 20_001) ** 0.9, rel=1e-12)
    optimizer = make_optimizer(
        [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1}], Training(lr=0.1)
    )
    for schedule, factor in (
        ("poly_held", held[16]),
        ("poly_open", open_poly(16, 20_000)),
        ("poly", poly(16, 20_000)),
    ):
        assert set_rate(optimizer, 16, 20_000, Training(schedule=schedule)) == pytest.approx(
            0.1 * factor, rel=1e-12
        )


def test_golden_classification_loss():
    class Fixed(Cam):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images

    from tiny_nets import TinyBackbone

    logits, tags = 4 * U((3, 20), 1) - 2, (U((3, 20), 2) > 0.8).double()
    method = Fixed(Config(), TinyBackbone(), 20)
    loss = method.loss({"image": logits, "tags": tags}, np.random.default_rng(0))
    assert loss["cls"].item() == pytest.approx(0.864687631676, abs=1e-11)


def test_every_step_has_its_own_generators():
    draws = []
    for seed, step in ((0, 1), (0, 2), (1, 1), (0, 1)):
        own = step_rng(seed, step).random()
        draws.append((own, torch.rand(1).item()))
    assert draws[0] == draws[3]
    assert len(set(draws)) == 3


@pytest.mark.parametrize("name", VARIANTS)
def test_a_stopped_training_ends_as_an_unbroken_one(tmp_path, name):
    config = VARIANTS[name]
    unbroken = job(tmp_path / "whole", config)
    assert not same(unbroken, loop_job.Net().state_dict())
    with pytest.raises(Interrupted, match=f"stopped after step 4 of {TOTAL}"):
        job(tmp_path / "cut", config, stop_at(3 * config.accumulate))
    with pytest.raises(Interrupted, match=f"stopped after step 9 of {TOTAL}"):
        job(tmp_path / "cut", config, stop_at(4 * config.accumulate))
    assert same(job(tmp_path / "cut", config), unbroken)
    whole, cut = losses(tmp_path / "whole"), losses(tmp_path / "cut")
    assert {step: cut[step] for step in ("10", "12")} == {
        step: whole[step] for step in ("10", "12")
    }


def test_a_killed_training_ends_as_an_unbroken_one(tmp_path):
    script = [sys.executable, loop_job.__file__, str(tmp_path / "cut")]
    assert (
        subprocess.run(script, capture_output=True, env=environment()).returncode == -signal.SIGKILL
    )
    kept = sorted(p.name for p in (tmp_path / "cut").glob("*.pt"))
    assert kept == ["checkpoint-00000007.pt", "checkpoint-00000008.pt"]
    (tmp_path / "cut" / kept[1]).write_bytes(b"half of it")
    (tmp_path / "cut" / "checkpoint-00000009.tmp").write_bytes(b"the kill came while writing")
    unbroken = job(tmp_path / "whole", ALL)
    assert same(job(tmp_path / "cut", ALL), unbroken)
    assert losses(tmp_path / "cut")["12"] == losses(tmp_path / "whole")["12"]


def test_a_signal_to_every_process_leaves_the_loader_alive(tmp_path):
    """Schedulers stop a job that way; the step in progress may still need batches."""

    def stop_all(call: int) -> None:
        if call == 3:
            workers = multiprocessing.active_children()
            assert len(workers) == 2
            for worker in workers:
                os.kill(worker.pid, signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.3)

    with pytest.raises(Interrupted, match="stopped after step 4"):
        job(tmp_path, replace(PLAIN, workers=2), stop_all)
    assert multiprocessing.active_children() == []
    assert [p.name for p in tmp_path.glob("*.pt")] == ["checkpoint-00000004.pt"]


def environment() -> dict[str, str]:
    here = Path(loop_job.__file__).parent
    return {**os.environ, "PYTHONPATH": f"{here.parent.parent}:{here}"}


def test_workers_do_not_change_the_weights(tmp_path):
    alone = job(tmp_path / "0", PLAIN)
    for workers in (1, 2):
        assert same(job(tmp_path / str(workers), replace(PLAIN, workers=workers)), alone)
    assert not same(job(tmp_path / "seed", PLAIN, seed=4), alone)


def test_a_stop_in_the_last_step_is_not_forgotten(tmp_path):
    with pytest.raises(Interrupted, match=f"step {TOTAL} of {TOTAL}"):
        job(tmp_path / "cut", PLAIN, stop_at(TOTAL - 1))
    steps: list[int] = []
    assert same(job(tmp_path / "cut", PLAIN, steps.append), job(tmp_path / "whole", PLAIN))
    assert steps == []


def test_two_checkpoints_are_kept_and_the_end_clears_them(tmp_path):
    folders: list[list[str]] = []
    folder = tmp_path / "run"
    job(
        folder,
        replace(PLAIN, checkpoint_minutes=0.0),
        lambda n: folders.append([p.name for p in folder.glob("*.pt")]),
    )
    assert [len(names) for names in folders] == [0, 1] + [2] * (TOTAL - 2)
    (folder / "checkpoint-00000003.tmp").write_bytes(b"")
    (folder / "checkpoint-00000004.damaged").write_bytes(b"")
    Checkpoints(folder).clear()
    assert [p.name for p in folder.iterdir()] == ["metrics.csv"]


def test_damaged_checkpoints_are_passed_over(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    for step in (5, 10):
        checkpoints.save({"step": step, "model": {}})
    newest = tmp_path / "checkpoint-00000010.pt"
    newest.write_bytes(newest.read_bytes()[:-40])
    found = checkpoints.latest()
    assert found is not None
    assert found["step"] == 5
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".damaged", ".pt"]
    (tmp_path / "checkpoint-00000005.pt").write_bytes(b"")
    assert checkpoints.latest() is None


def test_a_restart_without_checkpoint_logs_once(tmp_path):
    def fail(n: int) -> None:
        if n == 11:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        job(tmp_path, PLAIN, fail)
    assert list(losses(tmp_path)) == ["10"]
    job(tmp_path, PLAIN)
    assert list(losses(tmp_path)) == ["10", "12"]


def test_the_checkpoint_of_another_model_is_refused(tmp_path):
    Checkpoints(tmp_path).save({"step": 3, "model": nn.Linear(2, 2).state_dict(), "optimizer": {}})
    with pytest.raises(WeightsError, match="belongs to another model") as caught:
        job(tmp_path, PLAIN)
    assert "same method, backbone and classes" in caught.value.expected
    assert "another --run" in caught.value.hint


def test_a_loss_that_is_not_finite_names_the_images(tmp_path, monkeypatch):
    poisoned = RECORDS[7].id

    def poison(record, rng):
        view = sample(record, rng)
        return {**view, "image": view["image"] * float("nan")} if record.id == poisoned else view

    sample = loop_job.sample
    monkeypatch.setattr(loop_job, "sample", poison)
    with pytest.raises(TrainingError, match="not finite at step") as caught:
        job(tmp_path, replace(PLAIN, checkpoint_minutes=0.0))
    assert poisoned in caught.value.found.split("batch: ")[1].split(", ")
    assert len(caught.value.found.split("batch: ")[1].split(", ")) == PLAIN.batch
    assert "classify.lr" in caught.value.hint
    assert "the last finite loss is" in caught.value.found
    for path in tmp_path.glob("*.pt"):
        assert all(t.isfinite().all() for t in torch.load(path)["model"].values())


@pytest.mark.parametrize("workers", [0, 2])
def test_any_exception_in_a_loader_ends_the_training_and_its_processes(
    tmp_path, monkeypatch, workers
):
    def broken(record, rng):
        if record.id == "r9":
            raise ZeroDivisionError("by design")
        return sample(record, rng)

    sample = loop_job.sample
    monkeypatch.setattr(loop_job, "sample", broken)
    with pytest.raises(LoadError) as caught:
        job(tmp_path, replace(PLAIN, workers=workers))
    assert str(caught.value).startswith("image 'r9': ZeroDivisionError: by design")
    # While the traceback is still held, as it is until the command has ended.
    assert multiprocessing.active_children() == []


def test_weights_that_the_last_update_ruins_are_not_returned(tmp_path):
    def steep(module, batch, rng):
        return {"cls": 1e37 * module.head[1].bias.sum()}

    net, metrics = loop_job.Net(), Metrics(tmp_path / "metrics.csv", "classify")
    config, samples = replace(PLAIN, lr=100.0, updates=1), Samples(RECORDS, loop_job.sample, 0)
    groups = [{"params": list(net.parameters())}]
    trainer = Trainer(net, steep, groups, samples, config, tmp_path, metrics, 0, "cpu")
    with pytest.raises(TrainingError, match="left NaN or inf in head") as caught:
        trainer.run()
    assert "classify.lr=..., it was 100" in caught.value.hint


def test_an_exception_after_an_epoch_ends_the_training(tmp_path):
    def validate(epoch: int) -> dict[str, float]:
        raise ZeroDivisionError("by design")

    trainer = Trainer(
        loop_job.Net(),
        loop_job.noisy_loss,
        [{"params": list(nn.Linear(2, 2).parameters())}],
        Samples(RECORDS, loop_job.sample, 0),
        replace(PLAIN, workers=2),
        tmp_path,
        Metrics(tmp_path / "metrics.csv", "classify"),
        0,
        "cpu",
    )
    with pytest.raises(ZeroDivisionError, match="by design"):
        trainer.run(validate)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_the_users_error(tmp_path, monkeypatch, workers):
    def unreadable(record, rng):
        if record.id == "r9":
            raise DataError("r9.png cannot be read", "a whole image", "wsss-trainer check DATA")
        return sample(record, rng)

    sample = loop_job.sample
    monkeypatch.setattr(loop_job, "sample", unreadable)
    with pytest.raises(DataError) as caught:
        job(tmp_path, replace(PLAIN, workers=workers))
    assert caught.value.found == "r9.png cannot be read"
    assert caught.value.hint == "wsss-trainer check DATA"


@pytest.mark.parametrize("accumulate", [2, 3, 9])
def test_accumulation_equals_the_whole_batch(tmp_path, accumulate):
    def weights(parts: int) -> torch.Tensor:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(216, 2))
        config = Training(**BASE | {"accumulate": parts, "batch": 5})
        groups = [{"params": list(net.parameters()), "lr": 0.1, "weight_decay": 0.1}]
        folder = tmp_path / str(parts)
        samples = Samples(RECORDS, loop_job.sample, 0)
        metrics = Metrics(folder / "m.csv", "x")
        Trainer(net, linear_loss, groups, samples, config, folder, metrics, 0, "cpu").run()
        return net[1].weight.detach()

    torch.testing.assert_close(weights(accumulate), weights(1), rtol=1e-5, atol=1e-6)


def linear_loss(module, batch, rng):
    logits = module(batch["image"])
    return {"cls": nn.functional.binary_cross_entropy_with_logits(logits, batch["tags"])}


def test_averaged_weights_follow_the_trained_ones(tmp_path):
    """With a decay of nearly 1 the average stays at the weights after the first step."""
    first = job(tmp_path / "first", replace(PLAIN, ema=1 - 1e-12))
    second = job(tmp_path / "second", replace(PLAIN, ema=1e-12))
    third = job(tmp_path / "third", PLAIN)
    floats = [k for k, v in third.items() if v.is_floating_point()]
    assert all(torch.allclose(second[k], third[k], atol=1e-6) for k in floats)
    assert not any(torch.allclose(first[k], third[k], atol=1e-6) for k in floats)


def test_what_is_logged(tmp_path):
    job(tmp_path, PLAIN)
    names = {row[3] for row in rows(tmp_path)}
    assert names == {"loss", "loss_cls", "loss_size", "lr", "data_wait", "images_per_second"}
    table = {(row[2], row[3]): float(row[4]) for row in rows(tmp_path)}
    assert table["12", "loss"] == pytest.approx(
        table["12", "loss_cls"] + table["12", "loss_size"], rel=1e-4
    )
    assert table["12", "lr"] == pytest.approx(PLAIN.lr * poly(11, TOTAL), rel=1e-4)
    assert 0 <= table["12", "data_wait"] <= 1
    assert {row[1] for row in rows(tmp_path)} == {"3"}


def test_validation_after_every_epoch(tmp_path):
    net, modes = nn.Sequential(nn.Flatten(), nn.Linear(216, 2)), []

    def validate(epoch: int) -> dict[str, float]:
        modes.append((epoch, net.training))
        return {"val_map": epoch / 10}

    groups = [{"params": list(net.parameters()), "lr": 0.1, "weight_decay": 0.0}]
    samples, metrics = (
        Samples(RECORDS, loop_job.sample, 0),
        Metrics(tmp_path / "metrics.csv", "classify"),
    )
    trainer = Trainer(net, linear_loss, groups, samples, PLAIN, tmp_path, metrics, 0, "cpu")
    trainer.run(validate)
    assert modes == [(1, False), (2, False), (3, False)]
    assert trainer.last["val_map"] == 0.3
    assert [row[1:] for row in rows(tmp_path) if row[3] == "val_map"] == [
        (str(epoch), str(4 * epoch), "val_map", f"{epoch / 10:g}") for epoch in (1, 2, 3)
    ]


def test_impossible_wishes(tmp_path):
    with pytest.raises(ConfigError, match="precision=fp16 needs a GPU"):
        make_fabric("fp16", "cpu")
    for knob in ("epochs", "batch", "accumulate"):
        with pytest.raises(ConfigError, match=f"{knob}=0"):
            replace(PLAIN, **{knob: 0})
    net = nn.Linear(2, 2)
    groups = [{"params": list(net.parameters()), "lr": 0.1, "weight_decay": 0.0}]
    metrics = Metrics(tmp_path / "m.csv", "x")
    samples = Samples([], loop_job.sample, 0)
    with pytest.raises(ConfigError, match="no image to train on"):
        Trainer(net, linear_loss, groups, samples, PLAIN, tmp_path, metrics, 0, "cpu")
