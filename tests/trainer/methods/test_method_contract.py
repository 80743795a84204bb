"""What every method promises, whichever it is: ``trainer.methods`` is read for names."""

import json
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from tiny_methods import CLASSES, KNOBS, batch, config_of, make

from trainer import config as knobs
from trainer.commands.catalogue import describe_method, list_methods
from trainer.errors import ConfigError
from trainer.maps.protocols import PROTOCOLS, CamsConfig
from trainer.methods.base import Method
from trainer.methods.recipes import RECIPES, SMALL, make_config
from trainer.methods.registry import build_method, declaration, method_classes, method_names
from trainer.options import method_preset
from trainer.training.loop import step_rng
from trainer.training.model_file import knobs_of
from trainer.training.optimiser import Training, make_optimizer

pytestmark = pytest.mark.parametrize("name", method_names())


def total(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms.values())).sum()


def loss_of(method: Method, step: int = 0, change=None) -> dict[str, torch.Tensor]:
    sample = batch()
    if change:
        sample |= change(sample)
    if not getattr(method, "subcategories", 0):
        del sample["subcategories"]
    return method.loss(sample, step_rng(7, step))


def without_classes(sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: torch.zeros_like(sample[key]) for key in ("tags", "subcategories")}


def unknown(sample: dict[str, torch.Tensor], classes: list[int]) -> dict[str, torch.Tensor]:
    """Tags and sub-categories of which nobody knows those of some classes."""
    tags, parts = sample["tags"].clone(), sample["subcategories"].clone()
    tags[:, classes] = torch.nan
    parts.unflatten(1, (CLASSES, -1))[:, classes] = torch.nan
    return {"tags": tags, "subcategories": parts}


def gradients(method: Method) -> dict[str, torch.Tensor]:
    return {k: p.grad for k, p in method.named_parameters() if p.grad is not None}


def test_terms_of_the_loss_are_finite_scalars_with_names(name):
    terms = loss_of(make(name).train())
    assert terms
    for key, term in terms.items():
        assert key.isidentifier()
        assert term.shape == ()
        assert torch.isfinite(term)


def test_the_same_seed_gives_the_same_loss(name):
    one, same = (loss_of(make(name).train()) for _ in range(2))
    assert {k: v.item() for k, v in one.items()} == {k: v.item() for k, v in same.items()}


def test_the_loss_is_float32_in_mixed_precision(name):
    method = make(name).train()
    with torch.autocast("cpu", torch.bfloat16):
        terms = loss_of(method)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    exact = loss_of(method)
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(
        {k: v.item() for k, v in exact.items()}, rel=0.05
    )


def test_gradients_reach_what_trains_and_nothing_else(name):
    method = make(name).train()
    total(loss_of(method)).backward()
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
            assert parameter.grad.any(), key
        else:
            assert parameter.grad is None, key


def test_a_batch_without_any_class_trains(name):
    method = make(name).train()
    terms = loss_of(method, change=without_classes)
    total(terms).backward()
    grads = gradients(method)
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    assert any(grad.any() for key, grad in grads.items() if not key.startswith("backbone."))


@pytest.mark.parametrize("classes", [[2], [0, 2], list(range(CLASSES))])
def test_unknown_classes_take_no_part_in_the_loss(name, classes, monkeypatch):
    pairs = []

    def recorded(logits, tags, *rest):
        # Of its own, so that its gradient is that of this loss alone.
        logits = logits.view_as(logits)
        logits.retain_grad()
        pairs.append((logits, tags))
        return soft_margin(logits, tags, *rest)

    soft_margin = torch.nn.functional.multilabel_soft_margin_loss
    monkeypatch.setattr(torch.nn.functional, "multilabel_soft_margin_loss", recorded)
    method = make(name).train()
    terms = loss_of(method, change=partial(unknown, classes=classes))
    total(terms).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(grad).all() for grad in gradients(method).values())
    # Neither the tags nor the sub-categories, two of each class.
    width = {CLASSES: 1, 2 * CLASSES: 2}
    blocks = [(x.grad, width[x.shape[1]]) for x, _ in pairs if x.shape[1] in width]
    assert blocks
    for grad, each in blocks:
        used = grad.unflatten(1, (CLASSES, each)).any(-1).any(0)
        assert [k for k in range(CLASSES) if not used[k]] == classes


def test_unknown_entries_of_single_images(name):
    method = make(name).train()

    def change(sample):
        tags = sample["tags"].clone()
        tags[0, 0], tags[1, 3] = torch.nan, torch.nan
        return {"tags": tags}

    total(loss_of(method, change=change)).backward()
    assert all(torch.isfinite(grad).all() for grad in gradients(method).values())
    assert any(grad.any() for grad in gradients(method).values())


def test_groups_hold_every_trained_parameter_once(name):
    method = make(name)
    groups = method.param_groups(0.1, 5e-4, new_factor=10.0)
    grouped = [p for g in groups for p in g["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in method.parameters() if p.requires_grad}
    assert len(grouped) == len({id(p) for p in grouped})
    assert all(g["lr"] > 0 and g["weight_decay"] >= 0 for g in groups)


def test_frozen_weights_do_not_move_even_by_decay(name):
    method = make(name).train()
    frozen = {k: p.detach().clone() for k, p in method.named_parameters() if not p.requires_grad}
    norms = {k: b.clone() for k, b in method.backbone.named_buffers()}
    free = {k: p.detach().clone() for k, p in method.named_parameters() if p.requires_grad}
    assert "backbone.layer1.0.conv1.weight" in frozen
    optimizer = make_optimizer(method.param_groups(1e-3, 0.5), Training(momentum=0.9))
    for step in range(2):
        optimizer.zero_grad()
        total(loss_of(method, step)).backward()
        optimizer.step()
    now = dict(method.named_parameters())
    assert all(torch.equal(now[k], v) for k, v in frozen.items())
    assert all(torch.equal(b, norms[k]) for k, b in method.backbone.named_buffers())
    assert not [k for k, v in free.items() if torch.equal(now[k], v)]


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (33, 20)])
def test_maps_are_not_negative_and_of_the_networks_size(name, size):
    method = make(name).eval()
    images = batch(size)["image"]
    with torch.inference_mode():
        maps, logits = method.cams_and_logits(images)
        assert torch.equal(method.cams(images), maps)
    assert maps.shape[:2] == (2, CLASSES)
    assert logits.shape == (2, CLASSES)
    assert maps.dtype == logits.dtype == torch.float32
    assert maps.min() >= 0
    assert maps.max() > 0
    stride = max(method.backbone.strides.values())
    assert maps.shape[2] >= -(-size[0] // stride)
    assert maps.shape[3] >= -(-size[1] // stride)


def test_maps_of_a_batch_are_those_of_its_images(name):
    method = make(name).eval()
    images = batch()["image"]
    with torch.inference_mode():
        torch.testing.assert_close(
            torch.cat([method.cams(image[None]) for image in images]),
            method.cams(images),
            rtol=1e-4,
            atol=1e-5,
        )


def test_validation_scores(name):
    method = make(name).eval()
    with torch.inference_mode():
        assert method(batch()["image"]).shape == (2, CLASSES)


def test_the_config_survives_its_file(name):
    config = config_of(name)
    stored = json.loads(json.dumps(knobs.as_dict(config)))
    assert knobs.replace(method_classes(name)[1](), knobs_of(stored), "method") == config


def test_presets_and_published_training_change_knobs_that_exist(name):
    declared = declaration(name)
    assert declared.protocol in (None, *PROTOCOLS)
    knobs.replace(declared.config(), declared.small, "method")
    for preset in declared.presets:
        changes = method_preset(name, preset)
        knobs.replace(method_classes(name)[1](), changes["method"], "method")
        knobs.replace(SMALL, changes["classify"], "classify")
        knobs.replace(CamsConfig(), changes["cams"], "cams")
        for recipe, config in RECIPES.items():
            knobs.replace(config, method_preset(name, preset, recipe)["classify"], "classify")
        assert not [
            section
            for section, values in changes.items()
            if values and section not in ("method", "classify", "cams")
        ]
    for recipe, changes in declared.training.items():
        make_config(recipe, changes)
    with pytest.raises(ConfigError, match="has no preset 'papper'"):
        method_preset(name, "papper")


def test_the_file_declares_its_own_class_and_knobs(name):
    declared = declaration(name)
    for part in (declared.method, declared.config):
        assert part.__module__ == f"trainer.methods.{name}"


def test_inputs_can_be_sent_to_loader_processes(name, tmp_path):
    needs = make(name).needs(tmp_path)
    assert "image" not in needs
    assert "tags" not in needs
    pickle.loads(pickle.dumps(dict(needs)))


def test_weights_survive_their_file(name, tmp_path):
    method, other = make(name), build_method(name, config_of(name), "resnet18", KNOBS, CLASSES)
    torch.save(method.state_dict(), tmp_path / "m.pt")
    other.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))
    with torch.inference_mode():
        assert torch.equal(
            other.eval().cams(batch()["image"]), method.eval().cams(batch()["image"])
        )


def test_every_knob_is_explained(name):
    about = describe_method(name)
    assert [knob for knob in about["knobs"] if not knob["meaning"]] == []
    row = next(row for row in list_methods() if row["method"] == name)
    assert row["about"].endswith(".")
    assert any(digit in row["paper"] for digit in ("19", "20"))


def test_a_method_of_nearly_this_name_is_pointed_out(name):
    with pytest.raises(ConfigError, match="there is no method") as caught:
        method_classes(name + "x")
    assert f"did you mean {name!r}?" in caught.value.expected
    assert np.all([known in caught.value.expected for known in method_names()])
