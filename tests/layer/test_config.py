"""The settings: sources and their order, checks and their texts, the table in the documentation."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beastcore import BatchBuffer, Cache, ConnectionTable
from beastmode.config import SETTINGS, BeastModeConfig, settings_table
from beastmode.cost import Prices
from beastmode.errors import BeastError, ConfigError

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"

TEN = {
    "MAX_CONCURRENT_USERS": ("max_connections", 100_000),
    "TARGET_RESPONSE_TIME": ("target_response_ms", 10),
    "CACHE_TTL": ("cache_ttl_s", 300),
    "CACHE_MAX_SIZE": ("cache_max_entries", 1_000_000),
    "SYNC_INTERVAL": ("sync_interval_ms", 100),
    "HEALING_INTERVAL": ("healing_interval_s", 5),
    "ZOMBIE_CLEANUP_INTERVAL": ("zombie_cleanup_interval_s", 30),
    "BATCH_SIZE": ("batch_max_ops", 500),
    "BATCH_TIMEOUT": ("batch_max_delay_ms", 1_000),
    "MEMORY_LIMIT": ("memory_limit_bytes", 1_073_741_824),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no variable of the outer environment."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("BEASTMODE_"):
            monkeypatch.delenv(name)
    return tmp_path


def toml(folder: Path, text: str, name: str = "settings.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def sources(config: BeastModeConfig) -> dict[str, str]:
    return {row.name: row.source for row in config.explain() if row.source != "default"}


# -- defaults and names ---------------------------------------------------------------------------


def test_the_ten_settings_have_their_names_and_defaults() -> None:
    config = BeastModeConfig()
    assert {s.alias: (n, getattr(config, n)) for n, s in SETTINGS.items() if s.alias} == TEN
    assert all(SETTINGS[name].live for name, _ in TEN.values())


def test_defaults_are_inside_their_own_bounds() -> None:
    for name, setting in SETTINGS.items():
        assert setting.check(setting.default, "here") == setting.default, name


def test_the_engine_takes_every_bound() -> None:
    high = {name: setting.high for name, setting in SETTINGS.items()}
    low = {name: setting.low for name, setting in SETTINGS.items()}
    cache = Cache(10, high["cache_ttl_s"])  # the most entries would take all memory at once
    cache.set(1, 1, low["cache_ttl_s"])
    cache.set(2, 2, high["negative_ttl_s"])
    ConnectionTable(high["max_connections"], high["idle_timeout_s"], grace=0)
    ConnectionTable(low["max_connections"], low["idle_timeout_s"], grace=0)
    BatchBuffer(high["batch_max_ops"], high["batch_max_delay_ms"] / 1000)
    BatchBuffer(low["batch_max_ops"], low["batch_max_delay_ms"] / 1000)


def test_it_is_frozen_comparable_and_can_be_pickled() -> None:
    config = BeastModeConfig(cache_ttl_s=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.cache_ttl_s = 6.0
    assert not hasattr(config, "__dict__")
    assert config == BeastModeConfig(cache_ttl_s=5.0)
    assert hash(config) == hash(BeastModeConfig(cache_ttl_s=5.0))
    restored = pickle.loads(pickle.dumps(config))
    assert restored == config
    assert restored.explain() == config.explain()


def test_repr_shows_what_differs_from_the_defaults() -> None:
    assert repr(BeastModeConfig()) == "BeastModeConfig()"
    config = BeastModeConfig(cache_ttl_s=5, write_mode="write-through")
    assert repr(config) == "BeastModeConfig(cache_ttl_s=5.0, write_mode='write-through')"
    assert eval(repr(config)) == config


# -- where values come from -----------------------------------------------------------------------


def test_later_sources_win_and_each_value_tells_its_source(folder: Path) -> None:
    path = toml(folder, "cache_ttl_s = 1\nbatch_max_ops = 1\nmax_connections = 1\n")
    env = {"BEASTMODE_BATCH_MAX_OPS": "2", "BEASTMODE_MAX_CONNECTIONS": "2", "PATH": "/bin"}
    config = BeastModeConfig.load(path, env, max_connections=3)
    assert (config.cache_ttl_s, config.batch_max_ops, config.max_connections) == (1, 2, 3)
    assert sources(config) == {
        "cache_ttl_s": str(path),
        "batch_max_ops": "BEASTMODE_BATCH_MAX_OPS",
        "max_connections": "argument",
    }


def test_a_value_equal_to_the_default_still_tells_its_source(folder: Path) -> None:
    config = BeastModeConfig.load(env={"BEASTMODE_CACHE_TTL": "300"})
    assert config == BeastModeConfig()
    assert sources(config) == {"cache_ttl_s": "BEASTMODE_CACHE_TTL"}


def test_the_environment_of_the_process_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEASTMODE_BATCH_SIZE", "7")
    assert BeastModeConfig.load().batch_max_ops == 7


def test_the_file_in_the_working_directory_is_found_when_none_is_named(folder: Path) -> None:
    assert BeastModeConfig.load(env={}) == BeastModeConfig()
    toml(folder, "CACHE_TTL = 60", "beastmode.toml")
    assert BeastModeConfig.load(env={}).cache_ttl_s == 60
    other = toml(folder, "CACHE_TTL = 61", "other.toml")
    assert BeastModeConfig.load(env={"BEASTMODE_CONFIG": str(other)}).cache_ttl_s == 61
    third = toml(folder, "CACHE_TTL = 62", "third.toml")
    assert BeastModeConfig.load(third, {"BEASTMODE_CONFIG": str(other)}).cache_ttl_s == 62


def test_a_table_or_the_top_level(folder: Path) -> None:
    path = toml(folder, '[other]\nx = 1\n[beastmode]\nMEMORY_LIMIT = "512MiB"\n')
    assert BeastModeConfig.load(path, {}).memory_limit_bytes == 512 * 2**20
    path = toml(folder, "\ufeffMEMORY_LIMIT = 1_048_576\n")
    assert BeastModeConfig.load(path, {}).memory_limit_bytes == 2**20


@pytest.mark.parametrize("alias", TEN)
def test_second_names_work_in_the_file_and_the_environment(folder: Path, alias: str) -> None:
    name, default = TEN[alias]
    value = default * 2
    path = toml(folder, f"{alias} = {value}")
    assert getattr(BeastModeConfig.load(path, {}), name) == value
    assert getattr(BeastModeConfig.load(env={f"BEASTMODE_{alias}": str(value)}), name) == value


def test_replace_is_a_checked_copy_and_keeps_sources(folder: Path) -> None:
    config = BeastModeConfig.load(env={"BEASTMODE_CACHE_TTL": "60"})
    changed = config.replace(batch_max_ops=9)
    assert (config.batch_max_ops, changed.batch_max_ops) == (500, 9)
    assert sources(changed) == {"cache_ttl_s": "BEASTMODE_CACHE_TTL", "batch_max_ops": "argument"}
    assert sources(config) == {"cache_ttl_s": "BEASTMODE_CACHE_TTL"}
    with pytest.raises(ConfigError, match="batch_max_ops must be an integer from 1 to 100,000"):
        config.replace(cache_ttl_s=1, batch_max_ops=0)
    assert config.cache_ttl_s == 60


def test_explain_has_every_setting_with_unit_and_second_name() -> None:
    rows = BeastModeConfig(cache_ttl_s=math.inf).explain()
    assert [row.name for row in rows] == list(SETTINGS)
    by_name = {row.name: row for row in rows}
    assert by_name["cache_ttl_s"].text == "never"
    assert by_name["memory_limit_bytes"].text == "1 GiB"
    assert by_name["max_connections"].text == "100,000 connections"
    assert by_name["target_response_ms"][2:] == ("default", "TARGET_RESPONSE_TIME", "ms")
    assert by_name["journal_path"].text == "none"


def test_to_dict_goes_through_json_and_back() -> None:
    config = BeastModeConfig(cache_ttl_s=math.inf, store_path=":memory:", memory_limit_bytes=2**21)
    copy = BeastModeConfig(**json.loads(json.dumps(config.to_dict(), allow_nan=False)))
    assert copy == config


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("max_connections", 0, "max_connections must be an integer from 1 to 16,777,216; got 0"),
        ("max_connections", -5, "got -5"),
        ("max_connections", True, "got True .a number, not a truth value."),
        ("max_connections", 1.5, "got 1.5"),
        ("max_connections", "100", "got '100' .a number, not text."),
        ("max_connections", None, "got None"),
        ("cache_ttl_s", math.nan, "a number from 0.001 to 31,536,000 seconds or inf .never.; got"),
        ("cache_ttl_s", -1, "got -1"),
        ("cache_ttl_s", 0, "got 0"),
        ("cache_ttl_s", -math.inf, "got -inf"),
        ("cache_ttl_s", 10**400, "got 1000"),
        ("cache_ttl_s", "soon", "got 'soon'"),
        ("sync_interval_ms", math.inf, "a number from 1 to 3,600,000 ms; got inf"),
        ("target_response_ms", Decimal(5), "got Decimal"),
        ("memory_limit_bytes", 1023, "from 1 MiB to 1 PiB; got 1023"),
        ("memory_limit_bytes", "12 parsecs", "units are B, KB, MB, GB, TB and KiB"),
        ("memory_limit_bytes", "1__0MiB", "got '1__0MiB'"),
        ("memory_limit_bytes", 2.0**30, "got 1073741824.0"),
        ("write_mode", "write-back", "must be 'write-behind' or 'write-through'; got 'write-back'"),
        ("durability", 3, "must be 'process' or 'power'; got 3"),
        ("store_path", "", "must be a file path; got ''"),
        ("store_path", "a\0b", "must be a file path"),
        ("store_path", b"data.db", "must be a file path"),
        ("journal_path", 5, "must be a file path or None; got 5"),
        ("price_currency", "euro", "an ISO 4217 code such as 'USD'; got 'euro'"),
        ("price_reads", -0.1, "a number from 0 to 1,000,000; got -0.1"),
        ("max_stale_s", -1, "a number from 0 to"),
    ],
)
def test_values_that_are_not_allowed(name: str, value: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        BeastModeConfig(**{name: value})
    assert str(caught.value).startswith(f"{name} must be ")
    assert str(caught.value).endswith("from an argument")
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, BeastError)


def test_unusual_numbers_that_are_allowed(tmp_path: Path) -> None:
    config = BeastModeConfig(
        cache_ttl_s=Fraction(1, 2), memory_limit_bytes="1.5 gib", store_path=tmp_path / "a.db"
    )
    assert (config.cache_ttl_s, config.memory_limit_bytes) == (0.5, 3 * 2**29)
    assert type(config.cache_ttl_s) is float
    assert config.store_path == str(tmp_path / "a.db")
    assert BeastModeConfig(store_path="~/a.db").store_path == str(Path.home() / "a.db")
    assert BeastModeConfig(max_stale_s=0).max_stale_s == 0
    assert BeastModeConfig(cache_ttl_s="never").cache_ttl_s == math.inf


@pytest.mark.parametrize(
    ("variable", "text", "reason"),
    [
        ("BATCH_SIZE", "5.5", "an integer from 1 to 100,000; got '5.5'"),
        ("BATCH_SIZE", "", "got ''"),
        ("BATCH_SIZE", "1e3", "got '1e3'"),
        ("BATCH_SIZE", "9" * 5000, "batch_max_ops must be"),
        ("CACHE_TTL_S", "nan", "got 'nan'"),
        ("CACHE_TTL_S", "5s", "got '5s'"),
        ("MEMORY_LIMIT", "-1GiB", "got '-1GiB'"),
        ("WRITE_MODE", "Write-Behind", "got 'Write-Behind'"),
    ],
)
def test_variables_that_are_not_allowed(
    folder: Path, variable: str, text: str, reason: str
) -> None:
    name = f"BEASTMODE_{variable}"
    with pytest.raises(ConfigError, match=reason) as caught:
        BeastModeConfig.load(env={name: text})
    assert str(caught.value).endswith(f"from the environment variable {name}")


@pytest.mark.parametrize(
    ("text", "value"), [("1_000", 1000), (" 12 ", 12), ("+3", 3), ("100000", 100_000)]
)
def test_integers_in_variables(folder: Path, text: str, value: int) -> None:
    assert BeastModeConfig.load(env={"BEASTMODE_BATCH_SIZE": text}).batch_max_ops == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("2.5", 2.5), ("1e2", 100.0), ("inf", math.inf), ("Never", math.inf), ("300", 300.0)],
)
def test_seconds_in_variables(folder: Path, text: str, value: float) -> None:
    assert BeastModeConfig.load(env={"BEASTMODE_CACHE_TTL": text}).cache_ttl_s == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("1048576", 2**20), ("2 MB", 2_000_000), ("1GiB", 2**30), ("1.5GB", 1_500_000_000)],
)
def test_sizes_in_variables(folder: Path, text: str, value: int) -> None:
    assert BeastModeConfig.load(env={"BEASTMODE_MEMORY_LIMIT": text}).memory_limit_bytes == value


@pytest.mark.parametrize(
    ("toml_text", "reason"),
    [
        ("cache_tll_s = 1", r"unknown setting 'cache_tll_s' in the file .*; did you mean 'cache_t"),
        ("CACHE_TTLS = 1", r"unknown setting 'CACHE_TTLS' .*; did you mean 'cache_ttl_s'\?"),
        ("zzz = 1", r"unknown setting 'zzz' .*; allowed are max_connections, "),
        ("[other]\nx = 1", "unknown setting 'other'"),
        ("cache_ttl_s = 1\nCACHE_TTL = 2", "cache_ttl_s is given twice in the file .*; keep one"),
        ("cache_ttl_s = 1\n[beastmode]\n", r"'cache_ttl_s' .* stands outside the table"),
        ("beastmode = 1", "must be a table, got 1"),
        ("cache_ttl_s = '5'", r"got '5' \(a number, not text\) from cache_ttl_s in the file"),
        ("CACHE_TTL = nan", "got nan from CACHE_TTL in the file"),
        ("batch_max_ops = true", "got True .* from batch_max_ops in the file"),
        ("batch_max_ops = 1979-05-27", "got datetime"),
        ("\ncache_ttl_s = = 1", "is no valid TOML: .*line 2"),
        ("x = " + "[" * 100_000, "is no valid TOML"),
    ],
)
def test_files_that_are_not_allowed(folder: Path, toml_text: str, reason: str) -> None:
    path = toml(folder, toml_text)
    with pytest.raises(ConfigError, match=reason) as caught:
        BeastModeConfig.load(path, {})
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"the file nothing\.toml cannot be read: No such file"):
        BeastModeConfig.load("nothing.toml", {})
    with pytest.raises(ConfigError, match=r"nothing\.toml \(named by BEASTMODE_CONFIG\) cannot"):
        BeastModeConfig.load(env={"BEASTMODE_CONFIG": "nothing.toml"})
    with pytest.raises(ConfigError, match="cannot be read"):
        BeastModeConfig.load(folder, {})
    (folder / "latin.toml").write_bytes(b"store_path = '\xe4'")
    with pytest.raises(ConfigError, match="is no valid TOML"):
        BeastModeConfig.load("latin.toml", {})


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"BEASTMODE_CACHE_TTLS": "1"}, "did you mean 'BEASTMODE_CACHE_TTL_S'"),
        ({"BEASTMODE_cache_ttl": "1"}, "unknown setting 'BEASTMODE_cache_ttl'"),
        (
            {"BEASTMODE_CACHE_TTL": "1", "BEASTMODE_CACHE_TTL_S": "2"},
            "cache_ttl_s is given twice in the environment: as 'BEASTMODE_CACHE_TTL' and as",
        ),
    ],
)
def test_variables_that_are_unknown_or_doubled(
    folder: Path, env: dict[str, str], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        BeastModeConfig.load(env=env)


def test_unknown_arguments() -> None:
    with pytest.raises(ConfigError, match="'cache_tll_s' in the arguments; did you mean"):
        BeastModeConfig.load(env={}, cache_tll_s=1)
    with pytest.raises(ConfigError, match="as an argument it is called 'cache_ttl_s'"):
        BeastModeConfig().replace(CACHE_TTL=1)


# -- what is derived ------------------------------------------------------------------------------


def test_prices_and_the_journal_beside_the_store() -> None:
    config = BeastModeConfig(price_currency="EUR", price_writes=1.5)
    assert config.prices == Prices(currency="EUR", writes=1.5)
    assert BeastModeConfig().prices == Prices()
    assert BeastModeConfig(store_path="x.db").journal_file == "x.db-journal.db"
    assert BeastModeConfig(store_path=":memory:").journal_file is None
    assert BeastModeConfig(store_path=":memory:", journal_path="j").journal_file == "j"


@given(st.integers(min_value=2**20, max_value=2**50))
def test_a_size_as_shown_is_read_back(size: int) -> None:
    setting = SETTINGS["memory_limit_bytes"]
    shown = setting.text(size).replace(",", "")
    assert setting.check(shown, "here", from_text=True) == size


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()))
def test_any_value_is_taken_or_refused_with_a_config_error(value: object) -> None:
    for name, setting in SETTINGS.items():
        try:
            taken = setting.check(value, "here")
        except ConfigError as error:
            refusal = str(error)
        else:
            refusal = name
            assert setting.check(taken, "here") == taken
        assert name in refusal


def test_the_table_in_the_documentation_is_current() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    current = f"{before}{BEGIN}{settings_table()}{END}{after}"
    if os.environ.get("UPDATE_DOCS") == "1":
        DOCUMENT.write_text(current, encoding="utf-8")
        text = current
    assert text == current, "run: UPDATE_DOCS=1 ./dev test tests/layer/test_config.py"


# -- collections ---------------------------------------------------------------------------------


def test_collections_come_from_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('listen_collections = ["users", "users/7/orders", "users"]\n', encoding="utf-8")
    wanted = ("users", "users/7/orders")
    assert BeastModeConfig.load(file, {}).listen_collections == wanted
    variable = {"BEASTMODE_LISTEN_COLLECTIONS": " users, users/7/orders,"}
    assert BeastModeConfig.load(env=variable).listen_collections == wanted
    config = BeastModeConfig(listen_collections=list(wanted))  # type: ignore[arg-type]
    assert config.listen_collections == wanted
    rows = {row.name: row.text for row in config.explain()}
    assert rows["listen_collections"] == "users, users/7/orders"


@pytest.mark.parametrize("value", ["users", ["users/7"], [""], ["u//v"], [7], {"users": 1}, None])
def test_what_names_no_collections_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="listen_collections must be a list of collection paths"):
        BeastModeConfig(listen_collections=value)  # type: ignore[arg-type]
