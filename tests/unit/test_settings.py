"""Settings: flags over variables over the file; errors name the setting."""

import os
from pathlib import Path

import pytest

from millpond.errors import InvalidRequestError
from millpond.queue.job_queue import QueueOptions
from millpond.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the developer's, and a working directory without a file."""
    for name in list(os.environ):
        if name.startswith("MILLPOND_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults() -> None:
    settings = load_settings()
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.host == "127.0.0.1"
    assert (settings.window, settings.window_min_jobs, settings.window_max_wait_ms) == (
        "at-once",
        2,
        200.0,
    )


def test_flag_over_variable_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "millpond.toml").write_text("lease_s = 3.5\nslots = 1\nport = 1\n")
    monkeypatch.setenv("MILLPOND_LEASE_S", "4")
    monkeypatch.setenv("MILLPOND_SLOTS", "2")
    settings = load_settings(lease_s=3.0)
    assert (settings.lease_s, settings.slots, settings.port) == (3.0, 2, 1)


def test_a_flag_of_none_was_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_LEASE_S", "4")
    assert load_settings(lease_s=None).lease_s == 4.0


def test_the_file_that_the_variable_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.toml").write_text('queue = "mine"\n')
    monkeypatch.setenv("MILLPOND_CONFIG", str(tmp_path / "other.toml"))
    assert load_settings().queue == "mine"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lease_s", "0"),
        ("lease_s", "nan"),
        ("lease_s", "inf"),
        ("lease_s", "long"),
        ("slots", "0"),
        ("slots", "1.5"),
        ("port", "65536"),
        ("max_attempts", "-1"),
        ("queue", "a b"),
        ("queue", "a}b"),
        ("window", "round"),
        ("engine", "magic"),
        ("dtype", "int8"),
        ("grace_s", "-1"),
        ("log_level", "loud"),
    ],
)
def test_errors_name_the_setting(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"MILLPOND_{name.upper()}", value)
    with pytest.raises(InvalidRequestError) as caught:
        load_settings()
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("wrong", "fine"),
    [
        ({"lease_s": 15, "heartbeat_s": 5.1}, {"lease_s": 15, "heartbeat_s": 5}),
        ({"lease_s": 2.9}, {"lease_s": 2.9, "heartbeat_s": 0.5}),
        ({"retry_delay_s": 61}, {"retry_delay_s": 61, "retry_delay_max_s": 61}),
    ],
)
def test_settings_that_cannot_go_together_are_both_named(
    wrong: dict[str, float], fine: dict[str, float]
) -> None:
    load_settings(**fine)
    with pytest.raises(InvalidRequestError) as caught:
        load_settings(**wrong)
    [given, other] = (
        ("heartbeat_s", "lease_s") if "lease_s" in wrong else ("retry_delay_max_s", "retry_delay_s")
    )
    assert caught.value.field == given
    assert other in caught.value.message


def test_an_unknown_flag() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        load_settings(lease=3)
    assert caught.value.field == "lease"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().slots = 3  # type: ignore[misc]


def test_queue_options_take_every_promise() -> None:
    values = {name: 4.0 for name in QueueOptions.__slots__ if name.endswith("_s")}
    values |= {"max_attempts": 7, "event_maxlen": 7, "max_depth": 7}
    options = load_settings(**values).queue_options()
    for name, value in values.items():
        assert getattr(options, name) == value


def test_the_defaults_are_the_queues_own() -> None:
    assert load_settings().queue_options() == QueueOptions()


def test_children_get_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(
        redis_url="redis://127.0.0.1:7000/2", lease_s=3.5, slots=4, model="a/b", window="fixed"
    )
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings


def test_model_name() -> None:
    assert load_settings().model_name == "smollm2-135m"
    assert load_settings(engine="simulated").model_name == "simulated"
    assert load_settings(engine="simulated", model="vibethinker-3b").preset().max_tokens == 8192


def test_every_setting_has_a_variable() -> None:
    names = set(Settings.model_fields)
    given = load_settings(
        model="m/m",
        kv_tokens=5,
        remote_url="http://h/v1",
        remote_api_key="k",
        remote_api_key_file="f",
        remote_model="m",
        metrics_port=0,
        visible_devices="0",
        vllm_args="--enforce-eager",
        files_url="s3://bucket",
    ).environment()
    assert {f"MILLPOND_{name.upper()}" for name in names} == given.keys()


def test_the_remote_engine_needs_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"engine": "remote"}, {"remote_url": "host:8000"}):
        with pytest.raises(InvalidRequestError) as caught:
            load_settings(**wrong)
        assert caught.value.field == "remote_url"
    monkeypatch.setenv("MILLPOND_REMOTE_API_KEY", "sesame")
    settings = load_settings(engine="remote", remote_url="http://h:1/v1")
    assert "sesame" not in repr(settings)
    assert settings.environment()["MILLPOND_REMOTE_API_KEY"] == "sesame"
    assert settings.preset().name == "smollm2-135m"


def test_adapters_are_json_in_flags_variables_and_children(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings({"adapters": '{"b": "/two", "a": "one"}'})
    assert settings.adapters == {"a": "one", "b": "/two"}
    assert settings.preset().adapters == ("a", "b")
    monkeypatch.setenv("MILLPOND_ADAPTERS", settings.environment()["MILLPOND_ADAPTERS"])
    assert load_settings().adapters == settings.adapters
    for wrong in ("{", '["a"]', '{"": "x"}', '{"a": 1}'):
        with pytest.raises(InvalidRequestError, match="adapters"):
            load_settings({"adapters": wrong})


def test_a_chat_upstream_needs_no_model_here() -> None:
    settings = load_settings(engine="remote", remote_url="http://h:1/v1", remote_route="chat")
    assert settings.counts_bytes
    assert (settings.model_name, settings.preset().name) == ("remote", "remote")
    assert settings.model_copy(update={"remote_model": "big"}).preset().name == "big"


OUTSIDE = ("0.0.0.0", "::", "192.168.0.7", "", "example.org", "localhost.example.org")
LOOPBACK = ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LOCALHOST")


@pytest.mark.parametrize("host", LOOPBACK)
def test_keys_may_be_off_on_loopback(host: str) -> None:
    assert not load_settings(host=host).auth_required
    assert not load_settings(host=host, auth="off").auth_required
    assert load_settings(host=host, auth="on").auth_required


@pytest.mark.parametrize("host", OUTSIDE)
def test_keys_are_off_elsewhere_only_if_said_in_so_many_words(host: str) -> None:
    assert load_settings(host=host).auth_required
    assert not load_settings(host=host, auth="off-and-i-know-it-is-open").auth_required
    with pytest.raises(InvalidRequestError) as caught:
        load_settings(host=host, auth="off")
    assert caught.value.field == "auth"
    assert "off-and-i-know-it-is-open" in str(caught.value)


def test_assigned_settings_come_below_flags_of_their_own() -> None:
    settings = load_settings({"slots": "3", "port": "5"}, slots=4, port=None)
    assert (settings.slots, settings.port) == (4, 5)
    with pytest.raises(InvalidRequestError, match="nonsense"):
        load_settings({"nonsense": "1"})


def test_a_file_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_CONFIG", "nowhere.toml")
    with pytest.raises(InvalidRequestError, match=r"MILLPOND_CONFIG: .*nowhere\.toml"):
        load_settings()


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "millpond.toml").write_text("slots = = 1")
    with pytest.raises(InvalidRequestError, match=r"millpond\.toml: is not TOML"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "near"),
    [("auth_", "auth"), ("lease", "lease_s"), ("redis_uri", "redis_url"), ("qwertyuiop", None)],
)
def test_an_unknown_name_is_an_error_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, near: str | None
) -> None:
    """A misspelt setting would else be the default, as an API that was to ask for keys and is open."""

    def refused(field: str, shown: str | None) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            load_settings()
        assert caught.value.field == field
        assert "there is no such setting" in caught.value.message
        assert (f"did you mean {shown}?" in caught.value.message) is (shown is not None)

    (tmp_path / "millpond.toml").write_text(f'{name} = "on"')
    refused(name, near)
    (tmp_path / "millpond.toml").unlink()
    monkeypatch.setenv(f"MILLPOND_{name.upper()}", "on")
    refused(f"MILLPOND_{name.upper()}", near and f"MILLPOND_{near.upper()}")


def test_an_unknown_name_in_the_file_is_found_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "millpond.toml").write_text('auth_ = "on"')
    with pytest.raises(InvalidRequestError, match=r"\(in millpond\.toml\)"):
        load_settings()


def test_names_have_commas_in_flags_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings({"allowed_hosts": "a.lan, b.lan", "cors_origins": ""})
    assert (settings.allowed_hosts, settings.cors_origins) == (("a.lan", "b.lan"), ())
    monkeypatch.setenv("MILLPOND_ALLOWED_HOSTS", settings.environment()["MILLPOND_ALLOWED_HOSTS"])
    assert load_settings().allowed_hosts == ("a.lan", "b.lan")
    with pytest.raises(InvalidRequestError, match="allowed_hosts"):
        load_settings({"allowed_hosts": "a,,b"})


def test_any_origin_needs_keys() -> None:
    assert load_settings(auth="on", cors_origins="*").cors_origins == ("*",)
    for open in ({}, {"auth": "off-and-i-know-it-is-open", "host": "0.0.0.0"}):
        with pytest.raises(InvalidRequestError, match="cors_origins: without keys"):
            load_settings(cors_origins="*", **open)


def test_a_worker_that_is_well_is_not_killed_for_its_silence() -> None:
    for values in ({"liveness_timeout_s": 2.0}, {"heartbeat_s": 11.0, "lease_s": 60.0}):
        with pytest.raises(InvalidRequestError, match="heartbeat_s") as caught:
            load_settings(**values)
        assert caught.value.field == "liveness_timeout_s"
