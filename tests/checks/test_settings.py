"""What is wrong with settings is one line that names the key as the user wrote it."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from phicalc.checks.settings import Positive, Settings, validated
from phicalc.errors import ConfigError


class Round(Settings):
    kind: Literal["round"] = "round"
    radius: Positive = 1.0


class Long(Settings):
    kind: Literal["long"] = "long"
    sides: tuple[float, float] = (1.0, 2.0)


class Drawing(Settings):
    shapes: list[Annotated[Round | Long, Field(discriminator="kind")]] = Field(default=[])
    frame: Round = Round()
    scale: Positive | tuple[Positive, ...] = 1.0
    filled: bool = False
    pages: int = 1

    @model_validator(mode="after")
    def _one_page(self) -> "Drawing":
        if self.filled and self.pages > 1:
            raise ValueError(f"pages: expected 1 for a filled drawing, got {self.pages}")
        return self


MISTAKES = {
    "colour: unknown key": {"colour": "red"},
    "shapes.0.radius: expected greater than 0, got -1": {
        "shapes": [{"kind": "round", "radius": -1}]
    },
    "shapes.0.kind: missing; it says which kind of 0 is meant": {"shapes": [{}]},
    "shapes.1.sides: expected more than 1, got [1]": {
        "shapes": [{"kind": "round"}, {"kind": "long", "sides": [1]}]
    },
    "frame.radius: expected a finite number, got nan": {"frame": {"radius": float("nan")}},
    "scale: expected greater than 0, got -2.0": {"scale": -2.0},
    "scale.1: expected greater than 0, got 0.0": {"scale": (1.0, 0.0)},
    "filled: expected yes or no, got 'often'": {"filled": "often"},
    "pages: expected a whole number, got 1.5": {"pages": 1.5},
    "scale: expected greater than 0, got 0 (and 1 more)": {"pages": "two", "scale": 0},
    "pages: expected 1 for a filled drawing, got 2": {"pages": 2, "filled": True},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_line(message):
    """The same in Python and from a file, however deep it lies."""
    with pytest.raises(ConfigError) as made:
        Drawing(**MISTAKES[message])
    assert str(made.value) == message
    with pytest.raises(ConfigError) as read:
        validated(Drawing, MISTAKES[message], "drawing.yaml")
    assert str(read.value) == f"drawing.yaml: {message}"


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Drawing().pages = 2
