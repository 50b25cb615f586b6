"""Command lines: the flags of `Config` in their groups, read by tyro."""

import io
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import tyro

from dreamer import config as c


@dataclass(frozen=True)
class ConfigFlags:
    """Every field of `Config` as a flag. `--help` shows them in these groups."""

    run: c.RunConfig = c.RunConfig()
    experience: c.ExperienceConfig = c.ExperienceConfig()
    networks: c.NetworksConfig = c.NetworksConfig()
    world_model: c.WorldModelConfig = c.WorldModelConfig()
    dreams: c.DreamsConfig = c.DreamsConfig()
    actor_critic: c.ActorCriticConfig = c.ActorCriticConfig()
    reports: c.ReportsConfig = c.ReportsConfig()

    @property
    def config(self) -> c.Config:
        """The flags as one `Config`. Raises ValueError for what is out of range."""
        groups = [asdict(getattr(self, field.name)) for field in fields(ConfigFlags)]
        return c.Config(**{name: value for group in groups for name, value in group.items()})

    @staticmethod
    def groups(config: c.Config) -> dict[str, Any]:
        """The groups with a `Config`'s values, as keyword arguments of this class."""
        kinds: dict[str, Any] = {field.name: type(field.default) for field in fields(ConfigFlags)}
        names = {group: [field.name for field in fields(kind)] for group, kind in kinds.items()}
        return {g: kinds[g](**{n: getattr(config, n) for n in names[g]}) for g in kinds}


def read_whole(text: str) -> int:
    """A whole number; 1e4 is one."""
    if not float(text).is_integer():
        raise ValueError(f"{text} is not a whole number")
    return int(float(text))


def read_path(text: str) -> Path:
    """An absolute path, `~` expanded: whatever runs later may change the working folder."""
    return Path(text).expanduser().absolute()


def primitive(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """How tyro reads whole numbers and paths; None leaves the type to tyro."""
    readers: dict[Any, tuple[str, Any]] = {int: ("INT", read_whole), Path: ("PATH", read_path)}
    metavar, read = readers.get(info.type, ("", None))
    return read and tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: isinstance(value, info.type),
        str_from_instance=lambda value: [str(value)],
    )


def parse(
    kind: Any, description: str | None, argv: Sequence[str] | None = None, **more: Any
) -> Any:
    """Make a `kind` (a class, or several as a union: subcommands) of what the command line says.

    argv: the words after the program's name, `sys.argv`'s if None; more: for `tyro.cli`, such as
    `default`. Ends the program with a message and status 2 where a flag or value is wrong.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # terminals that lack a letter
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(primitive)
    flat = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    more |= {"registry": registry, "config": flat}
    return tyro.cli(kind, description=description, args=argv, **more)
