"""The settings of beast mode: validated, frozen, each value with the place it came from.

Sources, later ones win:

1. the defaults below;
2. a TOML file, its table `[beastmode]` or else its top level: the one named by `load(file)` or
   by the environment variable BEASTMODE_CONFIG, else `./beastmode.toml` if it exists;
3. environment variables, `BEASTMODE_` and the setting's name in capitals;
4. keyword arguments.

Some settings have a second name (`Setting.alias`: CACHE_TTL for cache_ttl_s), accepted in the
file and, with the prefix, in the environment. Standard library only.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, NamedTuple, TypeVar

from beastmode.config._setting import PREFIX, Kind, Setting
from beastmode.config._sources import FILE_VARIABLE, by_setting, read_file, refuse_unknown
from beastmode.cost import Prices
from beastmode.errors import ConfigError

__all__ = ["SETTINGS", "BeastModeConfig", "ConfigRow", "Setting", "settings_table"]

_T = TypeVar("_T")
_YEAR_S: Final = 31_536_000  # the engine's longest time to live
_UNITS: Final[Mapping[str, str]] = {"seconds": "s", "milliseconds": "ms", "bytes": "bytes"}


def _setting(default: _T, kind: Kind, about: str, **details: Any) -> _T:
    """Declare a field of BeastModeConfig with its `Setting`."""
    details.setdefault("unit", _UNITS.get(kind, ""))
    described = Setting("", default, kind, about, **details)
    return field(default=default, metadata={"setting": described})


class ConfigRow(NamedTuple):
    """One line of `explain()`."""

    name: str
    value: Any
    source: str
    """'default', 'argument', the path of the file, or the environment variable."""
    alias: str | None
    unit: str

    @property
    def text(self) -> str:
        """The value as people read it, with its unit."""
        shown = SETTINGS[self.name].text(self.value)
        words = not isinstance(self.value, (int, float)) or shown[-1:].isalpha()
        return shown if words or not self.unit else f"{shown} {self.unit}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BeastModeConfig:
    """Every setting of beast mode. ConfigError names the setting, the value and what is allowed.

    Seconds, milliseconds and bytes are in the names. Values given here are checked like those of
    a file; `load()` reads the file and the environment too.
    """

    max_connections: int = _setting(
        100_000, "int", "Most connections at a time; one more is refused.",
        low=1, high=2**24, unit="connections", alias="MAX_CONCURRENT_USERS", live=True,
    )  # fmt: skip
    target_response_ms: float = _setting(
        10.0, "milliseconds", "The mean response time that overall efficiency is measured against.",
        low=0.001, high=3_600_000, alias="TARGET_RESPONSE_TIME", live=True,
    )  # fmt: skip
    cache_ttl_s: float = _setting(
        300.0, "seconds", "How long a cached document is served without asking the store.",
        low=0.001, high=_YEAR_S, alias="CACHE_TTL", live=True, endless=True,
    )  # fmt: skip
    cache_max_entries: int = _setting(
        1_000_000, "int", "Most documents that the cache holds.",
        low=1, high=2**30, unit="entries", alias="CACHE_MAX_SIZE", live=True,
    )  # fmt: skip
    sync_interval_ms: float = _setting(
        100.0, "milliseconds", "How often changes made elsewhere are looked for.",
        low=1, high=3_600_000, alias="SYNC_INTERVAL", live=True,
    )  # fmt: skip
    healing_interval_s: float = _setting(
        5.0, "seconds", "How often the store and the background work are probed.",
        low=0.1, high=86_400, alias="HEALING_INTERVAL", live=True,
    )  # fmt: skip
    zombie_cleanup_interval_s: float = _setting(
        30.0, "seconds", "How often idle connections are looked for.",
        low=0.1, high=86_400, alias="ZOMBIE_CLEANUP_INTERVAL", live=True,
    )  # fmt: skip
    batch_max_ops: int = _setting(
        500, "int", "Writes that make a batch due.",
        low=1, high=100_000, unit="operations", alias="BATCH_SIZE", live=True,
    )  # fmt: skip
    batch_max_delay_ms: float = _setting(
        1000.0, "milliseconds", "Age of the oldest buffered write that makes a batch due.",
        low=1, high=3_600_000, alias="BATCH_TIMEOUT", live=True,
    )  # fmt: skip
    memory_limit_bytes: int = _setting(
        2**30, "bytes", "Memory of the process that the memory figure is measured against.",
        low=2**20, high=2**50, alias="MEMORY_LIMIT", live=True,
    )  # fmt: skip

    idle_timeout_s: float = _setting(
        30.0, "seconds", "A connection without activity for longer is a zombie.",
        low=0.001, high=604_800, live=True,
    )  # fmt: skip
    negative_ttl_s: float = _setting(
        30.0, "seconds", "How long the cache remembers that a document does not exist.",
        low=0, high=_YEAR_S,
    )  # fmt: skip
    max_stale_s: float = _setting(
        60.0, "seconds", "How long past its time a document may be served while the store fails.",
        low=0, high=_YEAR_S,
    )  # fmt: skip
    reload_rate: int = _setting(
        1000, "int",
        "Documents a second that are loaded because they are in doubt, after an outage.",
        low=1, high=10_000_000, unit="per second",
    )  # fmt: skip
    coalesce_reads: Literal["auto", "on", "off"] = _setting(
        "auto", "choice",
        "Whether reads that coroutines begin in one turn of their event loop are asked of the "
        "async store in one call; auto leaves it to the store.",
        choices=("auto", "on", "off"),
    )  # fmt: skip
    listen_max_documents: int = _setting(
        10_000, "int",
        "Most cached documents that a store which can do so (Firestore) listens to one by one.",
        low=0, high=1_000_000, unit="documents",
    )  # fmt: skip
    listen_collections: tuple[str, ...] = _setting(
        (), "collections",
        "Collections that such a store listens to as a whole; all their documents are read.",
    )  # fmt: skip
    write_mode: Literal["write-behind", "write-through"] = _setting(
        "write-behind", "choice",
        "write-behind answers when a write is in the journal, write-through when the store has it.",
        choices=("write-behind", "write-through"),
    )  # fmt: skip
    durability: Literal["process", "power"] = _setting(
        "process", "choice",
        "What an acknowledged write survives: the end of the process, or a loss of power too.",
        choices=("process", "power"),
    )  # fmt: skip
    store_path: str = _setting(
        "beastmode.db", "path", "File of the embedded store; :memory: keeps nothing.",
    )  # fmt: skip
    journal_path: str | None = _setting(
        None, "path", "File of the write journal; without it, store_path and -journal.db.",
        optional=True,
    )  # fmt: skip
    journal_dir: str | None = _setting(
        None, "path", "Directory in which each process has a journal of its own; not journal_path.",
        optional=True,
    )  # fmt: skip
    commit_markers: Literal["auto", "transforms", "always"] = _setting(
        "auto", "choice",
        "Which buffered commits carry a marker, so that none counts twice or after newer ones; "
        "auto is always for a server (Firestore), else transforms.",
        choices=("auto", "transforms", "always"),
    )  # fmt: skip
    commit_deadline_s: float = _setting(
        5.0, "seconds",
        "How long the store has to answer a buffered commit; one that is later is halved.",
        low=0.1, high=300.0,
    )  # fmt: skip
    when_full: Literal["wait", "raise"] = _setting(
        "wait", "choice",
        "What a write does that finds the buffer full: wait for room until its deadline, or raise.",
        choices=("wait", "raise"),
    )  # fmt: skip
    audit_one_in: int = _setting(
        0, "int", "One of so many answers from the cache is compared with the store; 0 for none.",
        low=0, high=10**9, unit="answers",
    )  # fmt: skip
    audit_max_per_minute: int = _setting(
        60, "int", "Most documents read for these comparisons in a minute; each is billed.",
        low=1, high=100_000, unit="reads", live=True,
    )  # fmt: skip
    price_currency: str = _setting(
        "USD", "currency", "Currency of the three prices.", live=True,
    )  # fmt: skip
    price_reads: float = _setting(
        Prices().reads, "price", "Price of 100,000 documents read.",
        low=0, high=1_000_000, unit="per 100,000", live=True,
    )  # fmt: skip
    price_writes: float = _setting(
        Prices().writes, "price", "Price of 100,000 documents written.",
        low=0, high=1_000_000, unit="per 100,000", live=True,
    )  # fmt: skip
    price_deletes: float = _setting(
        Prices().deletes, "price", "Price of 100,000 documents deleted.",
        low=0, high=1_000_000, unit="per 100,000", live=True,
    )  # fmt: skip

    _sources: dict[str, str] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        for name, setting in SETTINGS.items():
            value = setting.check(getattr(self, name), "an argument")
            object.__setattr__(self, name, value)
            if value != setting.default:
                self._sources[name] = "argument"
        if self.journal_path is not None and self.journal_dir is not None:
            raise ConfigError(
                f"journal_path={self.journal_path!r} and journal_dir={self.journal_dir!r} both "
                "name the journal; give one of them"
            )

    @classmethod
    def load(
        cls,
        file: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        **arguments: Any,
    ) -> BeastModeConfig:
        """Return the settings from all sources (see the module); ConfigError names what is wrong.

        `env` is `os.environ` unless given. A file that was named must exist.
        """
        variables = os.environ if env is None else env
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}

        path, place, raw = read_file(SETTINGS, file, variables)
        for name, key in by_setting(SETTINGS, raw, "", place).items():
            values[name] = SETTINGS[name].check(raw[key], f"{key} in {place}")
            sources[name] = path

        mine = {
            key: text
            for key, text in variables.items()
            if key.startswith(PREFIX) and key != FILE_VARIABLE
        }
        for name, key in by_setting(SETTINGS, mine, PREFIX, "the environment").items():
            values[name] = SETTINGS[name].check(
                mine[key], f"the environment variable {key}", from_text=True
            )
            sources[name] = key

        refuse_unknown(SETTINGS, arguments)
        values.update(arguments)
        sources.update(dict.fromkeys(arguments, "argument"))
        return _with_sources(cls(**values), sources)

    def replace(self, **changes: Any) -> BeastModeConfig:
        """Return a copy with `changes`, or raise ConfigError; this object stays as it is."""
        refuse_unknown(SETTINGS, changes)
        sources = {**self._sources, **dict.fromkeys(changes, "argument")}
        return _with_sources(dataclasses.replace(self, **changes), sources)

    def explain(self) -> list[ConfigRow]:
        """Return one row for each setting, in the order of declaration.

        A value given to the constructor that equals the default shows as the default.
        """
        return [
            ConfigRow(
                name,
                getattr(self, name),
                self._sources.get(name, "default"),
                setting.alias,
                setting.unit,
            )
            for name, setting in SETTINGS.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the values by name, fit for JSON; `load(**config.to_dict())` gives them back."""
        values = {name: getattr(self, name) for name in SETTINGS}
        return {name: "never" if value == math.inf else value for name, value in values.items()}

    @property
    def prices(self) -> Prices:
        """The four settings of prices as one object."""
        return Prices(
            currency=self.price_currency,
            reads=self.price_reads,
            writes=self.price_writes,
            deletes=self.price_deletes,
        )

    @property
    def journal_file(self) -> str | None:
        """Where the one journal is: `journal_path`, else beside the store.

        None over :memory:, and with `journal_dir`.
        """
        if self.journal_dir is not None:
            return None
        if self.journal_path is not None:
            return self.journal_path
        return None if self.store_path == ":memory:" else f"{self.store_path}-journal.db"

    def __repr__(self) -> str:
        changed = [
            f"{name}={getattr(self, name)!r}"
            for name, setting in SETTINGS.items()
            if getattr(self, name) != setting.default
        ]
        return f"BeastModeConfig({', '.join(changed)})"


SETTINGS: Final[Mapping[str, Setting]] = {
    item.name: dataclasses.replace(item.metadata["setting"], name=item.name)
    for item in fields(BeastModeConfig)
    if item.init
}
"""Every setting by name, in the order of declaration."""


def _with_sources(config: BeastModeConfig, sources: dict[str, str]) -> BeastModeConfig:
    object.__setattr__(config, "_sources", sources)
    return config


def settings_table() -> str:
    """Return every setting as a table in Markdown, for the documentation."""
    lines = [
        "| setting | second name | default | allowed | changes live | what it does |",
        "|---|---|---|---|---|---|",
    ]
    for name, setting in SETTINGS.items():
        default = ConfigRow(name, setting.default, "default", setting.alias, setting.unit).text
        alias = f"`{setting.alias}`" if setting.alias else ""
        live = "yes" if setting.live else "no"
        lines.append(
            f"| `{name}` | {alias} | {default} | {setting.allowed} | {live} | {setting.about} |"
        )
    return "\n".join(lines) + "\n"
