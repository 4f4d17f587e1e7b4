"""A component's signature is the schema of its yaml."""

from __future__ import annotations

import inspect
import pickle
import pkgutil
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest

from kd_cli.data.base import DATASETS
from kd_cli.errors import ConfigError
from kd_cli.losses.base import LOSSES
from kd_cli.losses.kd import KD
from kd_cli.models.base import MODELS
from kd_cli.ranges import Count, NonNegative, Positive, Rule, Widths, require, within
from kd_cli.registry import Registry
from kd_cli.training.loggers.base import LOGGERS


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


def test_a_lent_component_is_there_for_a_while_and_others_that_come_meanwhile_stay(lamps: Registry[Lamp]) -> None:
    with lamps.lent("mine", Lamp):
        assert "mine" in lamps
        lamps.register("arrived")(lambda: Lamp())
    assert "mine" not in lamps
    assert "arrived" in lamps
    kept = lamps.component("arrived")
    with lamps.lent("arrived", Lamp):
        assert lamps.component("arrived") is Lamp
    assert lamps.component("arrived") is kept


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


MOTORS: Registry[Motor] = Registry("motor", "kd_cli.commands")


@MOTORS.register("class")
class Motor:
    """A component whose ranges stand in its annotations."""

    def __init__(
        self,
        power: Positive = 1.0,
        gears: Count | None = None,
        layers: Widths = (1,),
        ratios: Sequence[NonNegative] = (),
        poles: Annotated[int, Rule("even", lambda value: value % 2 == 0)] = 2,
        slots: Annotated[int, within(low=2)] = 2,
        volts: float = 1.0,
    ) -> None:
        self.volts = require("volts", volts, above=0.0, high=9.0)
        self.power = power


@MOTORS.register("function")
def make_motor(power: Positive = 1.0) -> Motor:
    return Motor(power)


OUT_OF_RANGE: list[tuple[str, Any, str]] = [
    ("power", -1, "power: -1 is not possible; it must be > 0"),
    ("power", float("nan"), "power: nan is not possible; it must be > 0"),
    ("gears", 0, "gears: 0 is not possible; it must be ≥ 1"),
    ("layers", [4, 0, -1], "layers: a layer needs at least 1 unit, not -1"),
    ("ratios", [0, 2.5, -2], "ratios: [0, 2.5, -2]: -2 is not possible; it must be ≥ 0"),
    ("poles", 3, "poles: 3 is not possible; it must be even"),
    ("slots", 1, "slots: 1 is not possible; it must be ≥ 2"),
]


@pytest.mark.parametrize(("option", "value", "message"), OUT_OF_RANGE)
def test_an_annotated_range_is_kept_in_a_configuration_and_in_a_call(option: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Motor(**{option: value})
    for look in (MOTORS.check, MOTORS.build):
        with pytest.raises(ConfigError, match=f"^bench.{re.escape(message)}$"):
            look({"name": "class", option: value}, where="bench")


def test_a_range_that_a_constructor_checks_by_itself_is_kept_when_it_is_built() -> None:
    with pytest.raises(ConfigError, match=r"^motor\.volts: 10\.0 is not possible; it must be > 0 and ≤ 9$"):
        MOTORS.build({"name": "class", "volts": 10})


def test_values_inside_their_ranges_are_possible() -> None:
    options = {"name": "class", "power": 1, "gears": None, "layers": [], "ratios": [0], "poles": 4, "slots": 2}
    assert isinstance(MOTORS.build(options), Motor)
    assert isinstance(Motor(0.1, 1, (1, 2)), Motor)


def test_functions_and_subclasses_keep_the_ranges_too() -> None:
    class Inherits(Motor):
        pass

    class PassesOn(Motor):
        def __init__(self, power: float) -> None:
            super().__init__(power)

    for make in (make_motor, Inherits, PassesOn):
        with pytest.raises(ValueError, match=r"^power: .* must be > 0"):
            make(-1.0)


def test_a_component_keeps_its_name_its_signature_and_can_be_pickled() -> None:
    assert list(inspect.signature(Motor).parameters)[:2] == ["power", "gears"]
    assert (make_motor.__module__, make_motor.__qualname__) == (__name__, "make_motor")
    assert pickle.loads(pickle.dumps(make_motor))(2.0).power == 2.0
    assert pickle.loads(pickle.dumps(KD(2.0))).temperature == 2.0


STATED = re.compile(
    r"^ {4,}(\w+): (?:(?!\n {4,}\w+: ).)*?(≥ 1|≥ 0|> 0|in \[0, 1[)\]]|in \(0, 1\))", re.MULTILINE | re.DOTALL
)
BELOW = {"≥ 1": 0, "≥ 0": -1.0, "> 0": 0.0, "in [0, 1)": 1.0, "in [0, 1]": 1.5, "in (0, 1)": 0.0}


@pytest.mark.parametrize("name", LOSSES.names())
def test_every_range_that_a_docstring_states_is_kept(name: str) -> None:
    component = LOSSES.component(name)
    stated = re.split(r"^ *(?:Raises|Attributes):", inspect.getdoc(component) or "", flags=re.MULTILINE)[0]
    parameters = inspect.signature(component).parameters
    found = {option: rule for option, rule in STATED.findall(stated.partition("Args:")[2]) if option in parameters}
    numbers = {option for option, parameter in parameters.items() if type(parameter.default) in (int, float)}
    assert numbers - found.keys() <= UNSTATED
    for option, rule in found.items():
        value: Any = [BELOW[rule]] if isinstance(parameters[option].default, tuple) else BELOW[rule]
        with pytest.raises(ConfigError, match=rf"^loss\.{option}: .* must be "):
            LOSSES.check({"name": name, option: value})


# Of which the docstring says it in other words.
UNSTATED = {"power", "resolution", "initial_variance"}


@pytest.mark.parametrize("registry", [LOSSES, MODELS, DATASETS, LOGGERS], ids=lambda registry: registry.group)
def test_every_component_is_in_the_file_whose_name_its_own_begins_with(registry: Registry[Any]) -> None:
    files = [module.name for module in pkgutil.iter_modules(sys.modules[registry._package].__path__)]
    for name in registry.names():
        home = max((file for file in files if name.startswith(file)), key=len, default="base")
        assert registry.component(name).__module__ == f"{registry._package}.{home}", name


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_only_the_file_of_the_name_is_imported() -> None:
    code = """
import sys
from kd_cli.losses.base import build_loss
from kd_cli.models.base import MODELS
build_loss({"name": "kd", "temperature": 2.0})
MODELS.build({"name": "resnet20"}, num_classes=10, in_channels=1, image_size=8)
print(*(name for name in sorted(sys.modules) if name.startswith(("kd_cli.losses.", "kd_cli.models."))))
"""
    ours = {f"kd_cli.losses.{file}" for file in ("base", "common", "kd")}
    assert set(run(code).split()) == ours | {f"kd_cli.models.{file}" for file in ("base", "layers", "resnet")}


def test_a_name_of_kd_is_taken_before_its_file_was_imported() -> None:
    code = """
from kd_cli.losses.base import LOSSES, Distiller
try:
    LOSSES.register("kd")(type("Mine", (Distiller,), {"__module__": "mine"}))
except ValueError as error:
    print(error)
LOSSES.register("kd_of_mine")(type("Mine", (Distiller,), {"__module__": "mine"}))
print(LOSSES.component("kd_of_mine").__name__, LOSSES.component("kd").__name__)
"""
    assert run(code) == "loss 'kd' is already registered by kd_cli.losses.kd.KD\nMine KD\n"


@pytest.mark.parametrize("name", ["kdx", "", None, 3, ["kd"]])
def test_what_is_no_name_is_no_component(name: Any) -> None:
    assert name not in LOSSES
    assert "kd" in LOSSES
