from pathlib import Path

from trainer import adaptation
from trainer.adaptation import UPDATES, choices
from trainer.data.dataset import Record
from trainer.options import Options, make_configs, merged
from trainer.run import Run


def records(*tags: tuple[int, ...]) -> list[Record]:
    return [Record(f"r{i}", Path(f"r{i}.jpg"), t) for i, t in enumerate(tags)]


UNEVEN = records(*[(0,)] * 60, *[(1,)] * 20, *[()] * 200)
PHOTOGRAPHS = records(*[(0,)] * 900, *[(0, 1)] * 900)


def chosen(data: list[Record], distance: float | None, **options):
    typed = Options(Path("data"), Path("run"), **options)
    reasons = choices(typed, make_configs(typed), data, distance)
    layer = merged([choice.layer for choice in reasons])
    return make_configs(typed, layer), [choice.reason for choice in reasons]


def test_photographs_change_nothing():
    configs, reasons = chosen(PHOTOGRAPHS, 0.005)
    assert reasons == []
    assert configs == make_configs(Options(Path("data"), Path("run")))


def test_images_unlike_those_of_imagenet_adapt_batch_norms_and_pool_small_objects():
    configs, reasons = chosen(PHOTOGRAPHS, 0.21)
    assert (configs.classify.bn, configs.classify.optimizer) == ("train", "adamw")
    assert configs.segment.bn == "train"
    assert configs.method.pooling == "lse"
    assert "distance 0.21" in reasons[0]


def test_methods_without_pooling_keep_their_heads():
    configs, reasons = chosen(PHOTOGRAPHS, 0.21, method="seam")
    assert configs.classify.bn == "train"
    assert "log-sum-exp" not in reasons[0]


def test_rare_classes_beside_negatives_are_balanced():
    configs, reasons = chosen(UNEVEN, None)
    assert configs.classify.balance
    assert configs.segment.balance
    assert reasons == ["classes have 20 to 60 images: rare ones are drawn more often"]


def test_few_images_train_for_updates_instead_of_passes():
    configs, reasons = chosen(UNEVEN, 0.0)
    assert configs.classify.updates == UPDATES["classify"]
    assert configs.classify.total(100) == 500
    # An epoch draws 120 positives, balanced, and as many negatives.
    assert "classify: 500 updates, because 5 passes would be 75" in reasons


def test_what_was_typed_stays():
    typed = ("classify.bn=frozen", "method.pooling=gmp", "segment.epochs=3")
    configs, _ = chosen(UNEVEN, 0.3, settings=typed)
    assert configs.classify.bn == "frozen"
    assert configs.classify.optimizer == "adamw"
    assert configs.method.pooling == "gmp"
    assert (configs.segment.epochs, configs.segment.updates) == (3, 0)
    configs, reasons = chosen(UNEVEN, 0.3, epochs=2)
    assert configs.classify.total(160) == 20
    assert (configs.classify.warmup, configs.classify.ema) == (0, 0.0)
    assert not any("updates" in reason for reason in reasons)


def test_the_distance_is_measured_once_for_the_same_images_and_weights(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(adaptation, "distance_of", lambda *args: calls.append(args) or 0.21)
    weights, image = tmp_path / "w.pth", tmp_path / "a.png"
    weights.write_bytes(b"weights")
    image.write_bytes(b"pixels")
    data = [Record("a", image, (0,)), Record("gone", tmp_path / "gone.png", (0,))]

    def distance() -> float | None:
        # As fit does: the manifest is saved and read again.
        run = Run(tmp_path / "run")
        value = adaptation.stored_distance(run.manifest, "resnet18", None, weights, data)
        run.save()
        return value

    (tmp_path / "run").mkdir()
    assert [distance(), distance(), len(calls)] == [0.21, 0.21, 1]
    image.write_bytes(b"other pixels")
    assert [distance(), distance(), len(calls)] == [0.21, 0.21, 2]
    weights.write_bytes(b"other weights")
    assert [distance(), len(calls)] == [0.21, 3]


def test_published_segmenters_keep_their_training():
    plain = make_configs(Options(Path("d"), Path("r"), segmenter="deeplab-v2-r101"))
    configs, _ = chosen(UNEVEN, 0.3, segmenter="deeplab-v2-r101")
    assert configs.segment == plain.segment
