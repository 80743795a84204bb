"""Loading, swapping and unloading, on the event loop that a server would have."""

from __future__ import annotations

import asyncio
import shutil
import threading
from contextlib import asynccontextmanager

import numpy as np
import pytest
import tiny_models
from configs import configured

from serving.errors import ConfigError, ModelNotFound, RepositoryError, ServerUnavailable
from serving.repository import models as module
from serving.repository.models import Models
from serving.repository.served import State

PIXELS = {"image": np.full((1, 9, 9, 3), 200, np.uint8)}
BAD = {"sha256": {"model.onnx": "0" * 64}}


@asynccontextmanager
async def started(root, **settings):
    models = Models(configured(root, **settings))
    try:
        await models.start()
        yield models
    finally:
        await models.close()


def states(models):
    return [(state.name, state.version, str(state.state)) for state in models.index()]


def reason(models, name, version):
    return next(
        state.reason for state in models.index() if (state.name, state.version) == (name, version)
    )


def versions(models, name="colours"):
    return [served.card.version for served in models.served() if served.card.name == name]


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_the_sound_models_are_served_and_the_others_told_with_their_reason(tmp_path):
    tiny_models.export(tmp_path)
    tiny_models.export(tmp_path, "maps", "cam", changes=BAD)
    (tmp_path / "empty").mkdir()

    async def work():
        async with started(tmp_path) as models:
            assert states(models) == [("colours", 1, "READY"), ("maps", 1, "UNAVAILABLE")]
            told = reason(models, "maps", 1)
            assert told.startswith("maps/1/model.onnx is damaged or was replaced")
            assert str(tmp_path) not in told
            with pytest.raises(
                ModelNotFound, match=r"model 'maps' is not served: maps/1/model\.onnx is damaged"
            ) as caught:
                models.find("maps", 0, None)
            assert caught.value.metadata == {"known": "colours"}
            ran = await models.find("colours", 0, "segmenter").batcher.run(PIXELS)
            assert (ran.outputs["mask"] == 1).all()
        with pytest.raises(RepositoryError, match="SHA-256"):
            await Models(configured(tmp_path, models__strict=True)).start()

    asyncio.run(work())


def test_a_repository_without_a_sound_model_does_not_start(tmp_path):
    tiny_models.export(tmp_path, changes=BAD)
    for settings in ({}, {"models__control": "poll"}):
        with pytest.raises(RepositoryError, match="SHA-256"):
            asyncio.run(Models(configured(tmp_path, **settings)).start())


def test_an_empty_repository_starts_only_where_models_may_come(tmp_path):
    async def work():
        async with started(tmp_path, models__control="explicit") as models:
            with pytest.raises(ModelNotFound):
                models.find("colours", 0, None)
            tiny_models.export(tmp_path)
            await models.load("colours")
            assert versions(models) == [1]
            await models.unload("colours")
            assert states(models) == [("colours", 1, "UNAVAILABLE")]
            with pytest.raises(ModelNotFound):
                await models.unload("colours")
            await models.load("colours")
            assert versions(models) == [1]
            with pytest.raises(ModelNotFound, match="nearest: colours"):
                await models.load("colour")

    with pytest.raises(RepositoryError, match="holds no model"):
        asyncio.run(Models(configured(tmp_path)).start())
    asyncio.run(work())


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("latest", [3]), ("latest:2", [2, 3]), ("all", [1, 2, 3]), ("1,2", [1, 2])],
)
def test_policies_count_the_sound_versions(tmp_path, policy, expected):
    for version in (1, 2, 3, 4):
        tiny_models.export(tmp_path, version=version, changes=BAD if version == 4 else None)

    async def work():
        async with started(tmp_path, models__versions=policy) as models:
            assert versions(models) == expected
            assert models.find("colours", 0, None).card.version == max(expected)

    asyncio.run(work())


def test_a_model_is_served_by_a_schedule_of_its_own(tmp_path):
    for name in ("colours", "others"):
        tiny_models.export(tmp_path, name)

    async def work():
        async with started(
            tmp_path, schedule__models={"others": {"bucket": 32, "warm": ["64x64"]}}
        ) as models:
            assert [models.find(name, 0, None).bucket for name in ("colours", "others")] == [1, 32]

    asyncio.run(work())


def test_settings_that_mean_nothing():
    wrong = {"schedule__models": {"colours": {"warm": ["big"]}}}
    for settings in ({"models__versions": "newest"}, {"schedule__warm": ["big"]}, wrong):
        with pytest.raises(ConfigError):
            Models(configured("none", **settings))


def test_a_new_version_takes_over_in_one_step_and_the_old_one_ends_with_its_last_request(tmp_path):
    tiny_models.export(tmp_path)

    async def work():
        async with started(tmp_path, models__control="explicit") as models:
            told = []
            models.subscribe(lambda change: told.append((change.version, str(change.state))))
            old = models.find("colours", 0, None)
            tiny_models.export(tmp_path, version=2)
            with models.lease(old), models.lease(old):
                await models.load("colours")
                assert versions(models) == [2]
                assert states(models) == [("colours", 1, "UNLOADING"), ("colours", 2, "READY")]
                assert (await old.batcher.run(PIXELS)).outputs["mask"].shape == (1, 9, 9)
                await asyncio.sleep(0.05)
            await until(lambda: states(models)[0][2] == "UNAVAILABLE")
            with pytest.raises(ServerUnavailable):
                await old.batcher.run(PIXELS)
            assert told == [(2, "LOADING"), (2, "READY"), (1, "UNLOADING"), (1, "UNAVAILABLE")]

    asyncio.run(work())


def test_unloading_waits_for_the_requests_under_way(tmp_path):
    tiny_models.export(tmp_path)

    async def work():
        async with started(tmp_path) as models:
            served = models.find("colours", 0, None)
            with models.lease(served):
                unloading = asyncio.ensure_future(models.unload("colours"))
                await until(lambda: states(models) == [("colours", 1, "UNLOADING")])
                with pytest.raises(ModelNotFound):
                    models.find("colours", 0, None)
                assert (await served.batcher.run(PIXELS)).outputs
                assert not unloading.done()
            await unloading

    asyncio.run(work())


def test_files_exchanged_in_place_are_a_new_model(tmp_path):
    folder = tiny_models.export(tmp_path)

    async def work():
        async with started(tmp_path, models__control="explicit") as models:
            first = models.find("colours", 0, None)
            await models.load("colours")
            assert models.find("colours", 0, None) is first, "nothing changed"
            tiny_models.change_card(folder, protocol="another")
            await models.load("colours")
            second = models.find("colours", 0, None)
            assert second.card.protocol == "another"
            tiny_models.change_card(folder, **BAD)
            with pytest.raises(RepositoryError, match="SHA-256"):
                await models.load("colours")
            assert models.find("colours", 0, None) is second
            assert states(models) == [("colours", 1, "READY")]
            assert "SHA-256" in reason(models, "colours", 1)
            tiny_models.save_graph(folder, tiny_models.graph("segmenter"))
            await models.load("colours")
            assert reason(models, "colours", 1) == ""

    asyncio.run(work())


def test_a_model_that_loads_for_the_first_time_is_worth_waiting_for(tmp_path, monkeypatch):
    tiny_models.export(tmp_path)
    go = threading.Event()

    def slowly(folder, config, stop, build=module.build):
        go.wait(30)
        return build(folder, config, stop)

    monkeypatch.setattr(module, "build", slowly)

    async def work():
        models = Models(configured(tmp_path))
        starting = asyncio.ensure_future(models.start())
        await until(lambda: states(models) == [("colours", 1, "LOADING")])
        for name in ("colours", ""):
            with pytest.raises(ServerUnavailable, match="is loading") as caught:
                models.find(name, 0, "segmenter")
            assert caught.value.retry_after > 0
        with pytest.raises(ModelNotFound):
            models.find("other", 0, None)
        go.set()
        await starting
        assert models.find("", 0, "segmenter").card.name == "colours"
        await models.close()

    asyncio.run(work())


def test_polling_follows_the_repository(tmp_path):
    tiny_models.export(tmp_path / "made")
    root = tmp_path / "exported"
    (tmp_path / "made").rename(root)

    async def work():
        async with started(root, models__control="poll", models__poll_seconds=0.05) as models:
            tiny_models.export(root, version=2)
            await until(lambda: versions(models) == [2])
            # A third version whose graph is not copied whole yet: it settles, is refused, and taken
            # when it is whole.
            folder = tiny_models.export(root, version=3)
            whole = (folder / "model.onnx").read_bytes()
            (folder / "model.onnx").write_bytes(whole[:100])
            await until(lambda: ("colours", 3, "UNAVAILABLE") in states(models))
            assert versions(models) == [2]
            (folder / "model.onnx").write_bytes(whole)
            await until(lambda: versions(models) == [3])
            # Deleted versions go, and the newest that is left comes back; a model that is gone is
            # not listed.
            shutil.rmtree(folder)
            await until(lambda: versions(models) == [2])
            tiny_models.export(root, "maps", "cam")
            await until(lambda: versions(models, "maps") == [1])
            shutil.rmtree(root / "maps")
            await until(
                lambda: [state.name for state in models.index() if state.name == "maps"] == []
            )
            # A repository that cannot be seen for a while is no reason to stop serving.
            root.rename(tmp_path / "away")
            await asyncio.sleep(0.2)
            assert versions(models) == [2]
            (tmp_path / "away").rename(root)
            tiny_models.export(root, version=4)
            await until(lambda: versions(models) == [4])

    asyncio.run(work())


def test_a_library_that_raises_whatever_it_likes_is_a_refusal(tmp_path, monkeypatch):
    tiny_models.export(tmp_path)
    tiny_models.export(tmp_path, "other")

    def build(folder, config, stop, build=module.build):
        if folder.parent.name == "other":
            raise LookupError(f"in {folder}/model.onnx and /opt/library/source.cc")
        return build(folder, config, stop)

    monkeypatch.setattr(module, "build", build)

    async def work():
        async with started(tmp_path) as models:
            assert versions(models) == [1]
            assert reason(models, "other", 1) == "other/1 fails: in other/1/model.onnx and (path)"

    asyncio.run(work())


def test_a_crash_in_the_trial_is_told_as_the_reason(tmp_path, monkeypatch):
    tiny_models.export(tmp_path)

    async def crash(folder, config):
        if folder.name == "2":
            raise RepositoryError(f"the trial of {folder} crashed with SIGABRT")

    monkeypatch.setattr(module, "try_model", crash)

    async def work():
        async with started(tmp_path, models__control="explicit", models__trial=True) as models:
            tiny_models.export(tmp_path, version=2)
            with pytest.raises(RepositoryError, match="SIGABRT"):
                await models.load("colours")
            assert versions(models) == [1]
            assert reason(models, "colours", 2) == "the trial of colours/2 crashed with SIGABRT"

    asyncio.run(work())


def test_closing_while_a_model_is_being_loaded(tmp_path, monkeypatch):
    tiny_models.export(tmp_path)

    async def forever(folder, config):
        if folder.name == "2":
            await asyncio.sleep(1000)

    monkeypatch.setattr(module, "try_model", forever)

    async def work():
        async with started(
            tmp_path, models__control="poll", models__poll_seconds=0.05, models__trial=True
        ) as models:
            tiny_models.export(tmp_path, version=2)
            await until(lambda: ("colours", 2, "LOADING") in states(models))
            assert versions(models) == [1]

    asyncio.run(work())
    assert State.LOADING == "LOADING"


def test_a_server_that_ends_while_an_engine_is_built_ends_the_building(tmp_path, monkeypatch):
    tiny_models.export(tmp_path)
    asked, ended = threading.Event(), threading.Event()

    def forever(folder, config, stop):
        with stop.ending(ended.set):
            asked.set()
            assert ended.wait(30)
            raise RuntimeError("the library says that it was cancelled")

    monkeypatch.setattr(module, "build", forever)

    async def work():
        starting = asyncio.ensure_future(Models(configured(tmp_path)).start())
        assert await asyncio.to_thread(asked.wait, 30)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(work())
    assert ended.is_set()
