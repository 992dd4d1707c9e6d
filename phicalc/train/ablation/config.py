"""An ablation: one training configuration, and rows that differ from it in what is to be told."""

import re
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from phicalc.checks.settings import Settings, validated
from phicalc.errors import ConfigError
from phicalc.train.config import TrainConfig, parse_config, read_mapping

KEYS_OF_THE_RUN = ("output", "seed")


class AblationConfig(Settings):
    """Rows × seeds, all trained alike but for what a row overrides."""

    output: Path = Field(description="directory of all runs and of the table")
    title: str = Field(default="", description="heading of the table")
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1, description="one run of a row each")
    base: dict[str, Any] = Field(description="a training configuration without output and seed")
    rows: dict[str, dict[str, Any]] = Field(
        min_length=1, description="by name, what differs from the base: nested keys are merged"
    )

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"expected seeds that differ, got {seeds}")
        return seeds

    @field_validator("rows")
    @classmethod
    def _folders_differ(cls, rows: dict[str, Any]) -> dict[str, Any]:
        folders: dict[str, str] = {}
        for name in rows:
            folder = folder_name(name)
            if not folder or folder in folders:
                raise ValueError(
                    f"expected names that give folders of their own, got {name!r}"
                    + (f" beside {folders[folder]!r}" if folder else "")
                )
            folders[folder] = name
        return rows

    def folder(self, row: str, seed: int) -> Path:
        """Directory of one run."""
        return self.output / folder_name(row) / f"seed-{seed}"

    def run(self, row: str, seed: int) -> TrainConfig:
        """Training configuration of one run.

        Raises
        ------
        ConfigError
            If base and row together are no training configuration; names the row.
        """
        content = merged(self.base, self.rows[row])
        forbidden = [key for key in KEYS_OF_THE_RUN if key in content]
        if forbidden:
            raise ConfigError(
                f"row {row!r}: expected no {forbidden[0]} in base or row, it follows from the "
                "ablation's own output and seeds"
            )
        content |= {"output": str(self.folder(row, seed)), "seed": seed}
        return parse_config(content, source=f"row {row!r}")


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A mapping with another laid over it: nested mappings are merged, all else is replaced.

    A mapping of another ``kind`` (SchNet in place of PaiNN) is replaced whole.
    """
    result = dict(base)
    for key, value in change.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and _same_kind(old, value):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def _same_kind(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return bool(new.get("kind", old.get("kind")) == old.get("kind"))


def folder_name(row: str) -> str:
    """A row's name in lower-case ASCII letters, digits and single dashes."""
    ascii_only = row.lower().replace("φ", "phi").replace("+", " plus ")
    return re.sub(r"[^a-z0-9]+", "-", ascii_only).strip("-")


def load_ablation(path: str | Path) -> AblationConfig:
    """Read and validate the YAML file of an ablation, every row of it.

    Raises
    ------
    ConfigError
        If the file is missing, is not YAML, or holds an unknown key or a wrong value in itself or
        in the training configuration of any row.
    """
    config = validated(AblationConfig, read_mapping(path), str(path))
    for row in config.rows:
        config.run(row, config.seeds[0])
    return config
