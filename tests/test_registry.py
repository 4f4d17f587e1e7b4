"""A component's signature is the schema of its yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from kd_cli.errors import ConfigError
from kd_cli.registry import Registry


class Lamp:
    """A component with an option of every kind, and one argument that the program supplies."""

    def __init__(
        self,
        watts: float,
        bulbs: int = 1,
        lit: bool = False,
        colour: Literal["red", "green"] = "red",
        label: str | None = None,
        hours: tuple[int, int] = (0, 24),
        levels: Sequence[float] = (),
        extra: Mapping[str, float] | None = None,
        room: str = "",
    ) -> None:
        if watts <= 0:
            raise ValueError(f"watts: {watts} is not possible")
        self.options = {name: value for name, value in locals().items() if name != "self"}


@pytest.fixture
def lamps() -> Registry[Lamp]:
    registry: Registry[Lamp] = Registry("lamp", "kd_cli.commands", injected=("room",))
    registry.register("desk")(Lamp)
    return registry


def test_a_component_is_built_from_its_options(lamps: Registry[Lamp]) -> None:
    lamp = lamps.build({"name": "desk", "watts": 2.5, "label": "left", "hours": [8, 20], "extra": {"height": 3}})
    assert lamp.options["watts"] == 2.5
    assert lamp.options["label"] == "left"
    assert lamp.options["hours"] == (8, 20)
    assert lamp.options["extra"] == {"height": 3.0}
    assert lamp.options["bulbs"] == 1


def test_a_whole_number_serves_as_a_float_and_becomes_one(lamps: Registry[Lamp]) -> None:
    assert isinstance(lamps.build({"name": "desk", "watts": 3}).options["watts"], float)
    assert [type(x) for x in lamps.build({"name": "desk", "watts": 1, "levels": [1, 2.0]}).options["levels"]] == [
        float
    ] * 2


def test_the_program_supplies_only_what_the_component_takes(lamps: Registry[Lamp]) -> None:
    assert lamps.build({"name": "desk", "watts": 1.0}, room="hall", house="ours").options["room"] == "hall"


def test_a_configuration_may_not_give_what_the_program_supplies(lamps: Registry[Lamp]) -> None:
    with pytest.raises(ConfigError, match=r"lamp\.room: lamp 'desk' has no option 'room'"):
        lamps.build({"name": "desk", "watts": 1.0, "room": "hall"})


def test_an_unknown_name_is_refused_with_the_nearest_and_the_full_list(lamps: Registry[Lamp]) -> None:
    lamps.register("floor")(Lamp)
    with pytest.raises(ConfigError, match=r"there is no lamp 'dsk'; did you mean 'desk'\? Known: desk, floor"):
        lamps.build({"name": "dsk"})


def test_an_unknown_option_is_refused_with_the_nearest_and_the_full_list(lamps: Registry[Lamp]) -> None:
    with pytest.raises(ConfigError, match=r"lamp\.wats: .*did you mean 'watts'\? Known: .*bulbs.*watts"):
        lamps.build({"name": "desk", "wats": 1.0})


@pytest.mark.parametrize("options", [{}, {"watts": None}])
def test_a_missing_option_is_named(lamps: Registry[Lamp], options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"lamp\.watts: lamp 'desk' needs a value"):
        lamps.build({"name": "desk", **options})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("watts", "much", "'much' is not a number"),
        ("watts", True, "true is not a number"),
        ("bulbs", 1.5, "1.5 is not a whole number"),
        ("bulbs", True, "true is not a whole number"),
        ("bulbs", None, "None is not a whole number"),
        ("lit", 1, "1 is not true or false"),
        ("lit", "yes", "'yes' is not true or false"),
        ("colour", "rad", "'rad' is not possible; did you mean 'red'"),
        ("label", 5, "5 is not text"),
        ("hours", [1], "needs 2 values, not 1"),
        ("hours", "ab", "'ab' is not a list"),
        ("extra", [1], "is not a mapping"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_key(
    lamps: Registry[Lamp], option: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        lamps.build({"name": "desk", "watts": 1.0, option: value})
    assert str(error.value).startswith(f"lamp.{option}: ")
    assert message in str(error.value)


def test_an_item_of_the_wrong_type_is_refused_with_its_place(lamps: Registry[Lamp]) -> None:
    with pytest.raises(ConfigError, match=r"lamp\.levels\[1\]: 'x' is not a number"):
        lamps.build({"name": "desk", "watts": 1.0, "levels": [1.0, "x"]})
    with pytest.raises(ConfigError, match=r"lamp\.extra\.height: 'x' is not a number"):
        lamps.build({"name": "desk", "watts": 1.0, "extra": {"height": "x"}})


def test_a_value_that_the_component_refuses_is_named_by_its_key(lamps: Registry[Lamp]) -> None:
    with pytest.raises(ConfigError, match=r"^lamp\.watts: -1\.0 is not possible$"):
        lamps.build({"name": "desk", "watts": -1.0})


def test_messages_speak_of_the_key_where_the_options_stand(lamps: Registry[Lamp]) -> None:
    with pytest.raises(ConfigError, match=r"^bedside\.bulbs: "):
        lamps.check({"name": "desk", "watts": 1.0, "bulbs": "two"}, where="bedside")


def test_a_name_belongs_to_one_component(lamps: Registry[Lamp]) -> None:
    lamps.register("desk")(Lamp)  # a module that is imported twice registers the same again
    with pytest.raises(ValueError, match=r"lamp 'desk' is already registered by .*Lamp"):
        lamps.register("desk")(dict)


def test_a_component_of_the_same_class_name_from_elsewhere_is_another_one(lamps: Registry[Lamp]) -> None:
    namesake = type("Lamp", (), {"__module__": "a_plugin", "__qualname__": Lamp.__qualname__})
    with pytest.raises(ValueError, match="already registered"):
        lamps.register("desk")(namesake)
