from __future__ import annotations

from pathlib import Path

import pytest

from serving.config import ScheduleConfig, ServerConfig
from serving.errors import ConfigError
from serving.settings import read_config, set_values


def test_a_file_changes_what_it_says_and_keeps_the_rest(tmp_path: Path):
    file = tmp_path / "server.toml"
    file.write_text(
        'repository = "models"\n[network]\nport = 0\n[shutdown]\ngrace = 5\n[models]\nversions ='
        ' "all"\n'
    )
    config = read_config(file)
    assert config.repository == tmp_path / "models"
    assert (config.network.port, config.network.host) == (0, "127.0.0.1")
    assert config.shutdown.grace == 5.0
    assert isinstance(config.shutdown.grace, float)
    assert config.models.versions == "all"
    assert config.limits == ServerConfig().limits


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[network]\nprot = 1", "no setting 'network.prot'\nexpected: one of: host, port"),
        ("[netwrok]\nport = 1", "nearest: network"),
        ("network = 1", r"a table: \[network\]"),
        ("[network]\nport = 70000", "network.port is 70000\nexpected: 0 to 65535"),
        ("[schedule]\nqueue = 0", "schedule.queue is 0\nexpected: 1 or more"),
        ("[network]\nport = true", "network.port is True\nexpected: a value of type int"),
        ("[network]\nhost = 3", "network.host is 3"),
        ("[shutdown]\ngrace = nan", "shutdown.grace is nan"),
        ("[network", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text, told):
    file = tmp_path / "server.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_config(file)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "none.toml")


def test_single_settings():
    config = set_values(
        ServerConfig(),
        ["schedule.queue=7", "network.host=::1", 'models.versions="1,3"', "repository=a"],
    )
    assert (config.schedule.queue, config.network.host, config.models.versions) == (7, "::1", "1,3")
    assert config.repository == Path("a")
    for wrong in ("schedule.queue", "schedule.queue=many", "queue=3", "schedule.queue.x=3", "=3"):
        with pytest.raises(ConfigError):
            set_values(ServerConfig(), [wrong])


def test_engines_of_single_models(tmp_path: Path):
    file = tmp_path / "server.toml"
    file.write_text(
        '[engine]\nname = "onnxruntime"\ncache = "built"\n[engine.models]\npets = "openvino"\n'
    )
    config = set_values(read_config(file), ["engine.models.cars=tensorrt"])
    assert config.engine.models == {"pets": "openvino", "cars": "tensorrt"}
    assert config.engine.cache == tmp_path / "built"
    assert [config.engine.name_for(name) for name in ("pets", "cars", "cats")] == [
        "openvino",
        "tensorrt",
        "onnxruntime",
    ]
    with pytest.raises(
        ConfigError, match=r"engine\.models\.pets is 'openvin'\nexpected: .*nearest: openvino"
    ):
        set_values(config, ["engine.models.pets=openvin"])
    with pytest.raises(ConfigError, match=r"engine\.models is 'openvino'\nexpected: a table"):
        set_values(config, ["engine.models=openvino"])


def test_a_model_has_a_schedule_of_its_own(tmp_path):
    file = tmp_path / "serving.toml"
    file.write_text(
        "[schedule]\nqueue = 9\nbucket = 32\n[schedule.models.pets]\nmax_batch = 4\nwarm ="
        ' ["64x64"]\n'
    )
    config = set_values(
        read_config(file), ["schedule.models.pets.bucket=64", "schedule.models.cars.max_delay_ms=3"]
    )
    pets, cars, others = map(config.schedule.for_model, ("pets", "cars", "cats"))
    assert (pets.queue, pets.bucket, pets.max_batch, pets.warm) == (9, 64, 4, ("64x64",))
    assert (cars.queue, cars.bucket, cars.max_delay_ms, cars.warm) == (9, 32, 3.0, ())
    assert others == ScheduleConfig(queue=9, bucket=32)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("schedule.models.pets.bukket=64", "no setting 'schedule.models.pets.bukket'"),
        ("schedule.models.pets.bucket=0", "schedule.models.pets.bucket is 0"),
        ("schedule.models.pets.bucket=wide", "schedule.models.pets.bucket is 'wide'"),
        ("schedule.models.pets=4", "schedule.models.pets is 4"),
        ("schedule.models=4", "schedule.models is 4"),
        ("schedule.models.pets.models=4", "no setting 'schedule.models.pets.models'"),
    ],
)
def test_a_schedule_of_a_model_that_is_none(text, found):
    with pytest.raises(ConfigError) as error:
        set_values(ServerConfig(), [text])
    assert error.value.found == found
