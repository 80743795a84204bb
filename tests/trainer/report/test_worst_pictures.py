import pytest
from measured import write_masks, write_run
from PIL import Image
from typer.testing import CliRunner

from trainer.cli import app
from trainer.data.formats.opening import open_dataset
from trainer.errors import DataError
from trainer.report.worst_pictures import ROWS, write_worst
from trainer.scenes.writing import write_synthetic


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worst") / "data"
    write_synthetic(folder, 12, 48)
    return folder


def test_ten_rows_a_sheet_the_worst_first(data, tmp_path):
    dataset = open_dataset(data)
    write_masks(dataset, tmp_path / "masks", 0.5)
    worst = [{"id": name, "miou": 0.1} for name in dataset.lists["all"]]
    paths = write_worst(
        dataset, worst, tmp_path / "masks", tmp_path / "out", "segment-all", workers=0
    )
    assert [path.name for path in paths] == ["segment-all-1.png", "segment-all-2.png"]
    with Image.open(paths[0]) as first, Image.open(paths[1]) as second:
        assert first.height > ROWS * 160 > second.height


def test_a_mask_that_has_gone_is_named(data, tmp_path):
    dataset = open_dataset(data)
    name = dataset.lists["all"][0]
    with pytest.raises(DataError, match="cannot be shown") as caught:
        write_worst(
            dataset, [{"id": name, "miou": 0.1}], tmp_path, tmp_path / "out", "x", workers=0
        )
    assert f"{name}.png is missing" in caught.value.found


def test_every_stage_and_list_of_a_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.pool.cores", lambda: 1)
    run = write_run(tmp_path / "run", data, 0.4)
    done = CliRunner().invoke(app, ["eval", str(run), "--pictures", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    expected = {
        f"{stage}-{name}-1.png"
        for stage in ("cam", "refined", "segment")
        for name in ("train", "val")
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
