"""Command lines: the flags of `Config` in their groups, read by tyro."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro

from dreamer.config import (
    ActorCriticConfig,
    Config,
    DreamsConfig,
    ExperienceConfig,
    NetworksConfig,
    ReportsConfig,
    RunConfig,
    WorldModelConfig,
)

T = TypeVar("T")


@dataclass(frozen=True)
class ConfigFlags:
    """Every field of `Config` as a flag. `--help` shows them in these groups."""

    run: RunConfig = RunConfig()
    experience: ExperienceConfig = ExperienceConfig()
    networks: NetworksConfig = NetworksConfig()
    world_model: WorldModelConfig = WorldModelConfig()
    dreams: DreamsConfig = DreamsConfig()
    actor_critic: ActorCriticConfig = ActorCriticConfig()
    reports: ReportsConfig = ReportsConfig()

    @property
    def config(self) -> Config:
        """The flags as one `Config`. Raises ValueError for what is out of range."""
        groups = [getattr(self, field.name) for field in dataclasses.fields(ConfigFlags)]
        return Config(**{k: v for group in groups for k, v in vars(group).items()})

    @staticmethod
    def groups(config: Config) -> dict[str, Any]:
        """The groups with the values of a `Config`, as keyword arguments of this class."""
        found = {}
        for field in dataclasses.fields(ConfigFlags):
            kind: Any = type(field.default)
            names = [f.name for f in dataclasses.fields(kind)]
            found[field.name] = kind(**{name: getattr(config, name) for name in names})
        return found


def read_whole(text: str) -> int:
    """A whole number; 1e4 is one."""
    if float(text) != int(float(text)):
        raise ValueError(f"{text} is not a whole number")
    return int(float(text))


def read_path(text: str) -> Path:
    """An absolute path, `~` expanded: whatever runs later may change the working folder."""
    if not text.strip():
        raise ValueError("a path is empty: is a variable of the shell not set?")
    return Path(text).expanduser().absolute()


READERS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("INT", read_whole),
    Path: ("PATH", read_path),
}


def primitive(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """How tyro reads whole numbers and paths; None leaves the type to tyro."""
    if info.type not in READERS:
        return None
    metavar, read = READERS[info.type]
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: isinstance(value, info.type),
        str_from_instance=lambda value: [str(value)],
    )


def parse(
    kind: Callable[..., T], description: str | None, argv: Sequence[str] | None = None, **more: Any
) -> T:
    """Call `kind` (a class or function) with what the command line says, by its typed arguments.

    argv: the words after the program's name, `sys.argv`'s if None; more: for `tyro.cli`, such as
    `default`. Ends the program with a message and status 2 where a flag or value is wrong.
    """
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(primitive)
    flat = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    return tyro.cli(
        kind, description=description, args=argv, registry=registry, config=flat, **more
    )
