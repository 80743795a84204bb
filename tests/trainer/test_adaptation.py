from pathlib import Path

from trainer import adaptation
from trainer.adaptation import ADAPTING_UPDATES, UPDATES, Looks, choices
from trainer.data.dataset import Record
from trainer.options import Options, make_configs, merged
from trainer.run import Run


def records(*tags: tuple[int, ...]) -> list[Record]:
    return [Record(f"r{i}", Path(f"r{i}.jpg"), t) for i, t in enumerate(tags)]


UNEVEN = records(*[(0,)] * 60, *[(1,)] * 20, *[()] * 200)
PHOTOGRAPHS = records(*[(0,)] * 900, *[(0, 1)] * 900)


def chosen(
    data: list[Record], distance: float | None, longer: int = 2000, fine: bool = False, **options
):
    typed = Options(Path("data"), Path("run"), **options)
    looks = None if distance is None else Looks(distance, longer, fine)
    reasons = choices(typed, make_configs(typed), data, looks)
    layer = merged([choice.layer for choice in reasons])
    return make_configs(typed, layer), [choice.reason for choice in reasons]


def test_photographs_change_nothing():
    configs, reasons = chosen(PHOTOGRAPHS, 0.005)
    assert reasons == []
    assert configs == make_configs(Options(Path("data"), Path("run")))


def test_images_unlike_those_of_imagenet_adapt_batch_norms_and_pool_small_objects():
    configs, reasons = chosen(PHOTOGRAPHS, 0.21)
    assert (configs.classify.bn, configs.classify.optimizer) == ("adapt", "adamw")
    assert (configs.segment.bn, configs.segment.init) == ("adapt", "classifier")
    assert not configs.classify.upright
    assert configs.method.pooling == "lse"
    assert "distance 0.21" in reasons[0]


def test_a_segmenter_starts_from_what_was_named():
    for named in ({"cams": Path("maps")}, {"segmenter_weights": "none"}):
        assert chosen(PHOTOGRAPHS, 0.21, **named)[0].segment.init == "auto"


def test_methods_without_pooling_keep_their_heads():
    configs, reasons = chosen(PHOTOGRAPHS, 0.21, method="seam")
    assert configs.classify.bn == "adapt"
    assert "log-sum-exp" not in reasons[0]


def test_backbones_that_can_join_features_of_unlike_images():
    configs, reasons = chosen(PHOTOGRAPHS, 0.21, fine=True)
    assert (configs.classify.detail, configs.segment.detail) == ("fine", "fine")
    assert (configs.cams.tile, configs.segment.tile) == (1024, 1024)
    assert "detail=fine" in reasons[1]
    assert chosen(PHOTOGRAPHS, 0.21)[0].classify.detail == "coarse"
    assert chosen(PHOTOGRAPHS, 0.01, fine=True)[0].classify.detail == "coarse"


def test_detail_that_was_typed_stays():
    configs, reasons = chosen(PHOTOGRAPHS, 0.21, fine=True, detail="coarse")
    assert (configs.classify.detail, configs.cams.tile) == ("coarse", 0)
    assert not any("detail" in reason for reason in reasons)
    configs, _ = chosen(PHOTOGRAPHS, 0.01, detail="fine")
    assert (configs.classify.detail, configs.segment.detail) == ("fine", "fine")
    assert configs.cams.tile == configs.segment.tile == 1024
    configs, _ = chosen(PHOTOGRAPHS, 0.01, detail="fine", segmenter="largefov-r38")
    assert (configs.segment.detail, configs.segment.tile) == ("coarse", 0)


def test_training_views_follow_the_size_of_unlike_images():
    configs, reasons = chosen(PHOTOGRAPHS, 0.21, longer=324)
    assert (configs.classify.resize, configs.classify.crop) == ((227, 301), 256)
    assert "whole images" in reasons[-1]
    assert configs.cams.side == configs.segment.side == 301
    configs, reasons = chosen(PHOTOGRAPHS, 0.21, longer=4000)
    assert (configs.classify.resize, configs.classify.crop) == ((792, 1056), 352)
    assert "tiles of 352 pixels" in reasons[-1]
    assert configs.cams.side == configs.segment.side == 0
    configs, _ = chosen(PHOTOGRAPHS, 0.21, longer=324, size=96)
    assert configs.classify.crop == 96
    assert configs.cams.side == configs.segment.side == 0
    configs, _ = chosen(PHOTOGRAPHS, 0.21, longer=20)
    assert configs.classify.crop == 64
    assert configs.classify.resize == (16, 19)
    assert chosen(PHOTOGRAPHS, 0.21, longer=8)[0].classify.resize == (16, 16)


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


def test_unlike_images_train_shorter_and_have_masks_without_a_crf():
    configs, reasons = chosen(UNEVEN, 0.3, fine=True)
    assert configs.classify.updates == ADAPTING_UPDATES["classify"]
    assert configs.segment.updates == ADAPTING_UPDATES["segment"]
    assert (configs.cams.scales, configs.segment.scales) == ((1.0, 2.0), (1.0,))
    assert configs.segment.balanced
    assert configs.segment.verdict
    assert (configs.segment.tag_loss, configs.cams.departures) == (1, True)
    assert configs.refine.refine == "none"
    assert "without a CRF" in reasons[1]
    assert chosen(UNEVEN, 0.3, refine="crf")[0].refine.refine == "crf"
    assert chosen(UNEVEN, 0.3, settings=("refine.refine=crf",))[0].refine.refine == "crf"
    assert chosen(UNEVEN, 0.01)[0].refine.refine == "crf"


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
