"""Named components. A component is a callable; its signature is the schema of its yaml."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from kd_cli.errors import ConfigError, offer, suggest
from kd_cli.ranges import check_ranges, checked

# Plain type → how a message calls it, and an example.
_KINDS: Mapping[Any, tuple[str, str]] = {
    int: ("a whole number", "10"),
    float: ("a number", "0.5"),
    bool: ("true or false", "true"),
    str: ("text", "NAME"),
}

OWN = "own"  # what a program has handed to kd.distill: of a record only its name can be read
_OWN_REMEDY = {
    "dataset": "name images on disk, dataset=image_folder dataset.root=DIR",
    "model": "in Python kd.load(RUN, student=module) opens it; here name its code, student=external "
    "student.callable=mine.Net plugins=[./mine.py]",
}

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[T]):
    """The components of one config group.

    Args:
        group: the config group, used in messages: `loss`.
        package: a component is in the module of it whose name is the longest beginning of its own (`resnet20` in
            resnet.py), so a new file is found by being there, and no other one is imported.
        injected: arguments that the program supplies and a configuration never does.
    """

    def __init__(self, group: str, package: str, injected: Sequence[str] = ()) -> None:
        self.group = group
        self._package = package
        self._injected = frozenset(injected)
        self._components: dict[str, Callable[..., T]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[F], F]:
        """Decorator: makes a class or function available as `name`, and has it check the ranges of its annotations.

        Raises:
            ValueError: if another component has that name.
        """

        def add(component: F) -> F:
            if not getattr(component, "__module__", "").startswith(f"{self._package}."):
                self._import_file_of(name)  # so that a namesake from elsewhere is noticed now
            other = self._components.get(name)
            if other is not None and _identity(other) != _identity(component):
                raise ValueError(
                    f"{self.group} {name!r} is already registered by {other.__module__}.{other.__qualname__}"
                )
            self._components[name] = component = checked(component)
            return component

        return add

    @contextmanager
    def lent(self, name: str, component: Callable[..., T]) -> Iterator[None]:
        """A component is there while this is open: one of a program's own."""
        before = self._components.pop(name, None)
        self._components[name] = component
        try:
            yield
        finally:
            del self._components[name]
            self._components |= {} if before is None else {name: before}

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        if not self._loaded:
            for file in self._files():
                importlib.import_module(f"{self._package}.{file}")
            self._loaded = True
        return sorted(self._components)

    def __contains__(self, name: object) -> bool:
        """Whether a component has that name; its own file is imported, and all of them where that has no such name."""
        if isinstance(name, str) and name not in self._components:
            self._import_file_of(name)
        return isinstance(name, str) and (name in self._components or name in self.names())

    def _files(self) -> list[str]:
        return [module.name for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__)]

    def _import_file_of(self, name: str) -> None:
        file = max(filter(name.startswith, self._files()), key=len, default=None)
        if file is not None:
            importlib.import_module(f"{self._package}.{file}")

    def component(self, name: str, *, where: str = "") -> Callable[..., T]:
        """The registered callable.

        Args:
            where: the configuration key in messages if it is not the group.

        Raises:
            ConfigError: unknown name.
        """
        if name not in self and name.partition("_")[0] == OWN:
            remedy = _OWN_REMEDY.get(self.group, "the same call of kd.distill goes on with it")
            raise ConfigError(f"{where or self.group}: a program has handed its own to kd.distill; {remedy}")
        if name not in self:
            raise ConfigError(f"{where or self.group}: there is no {self.group} {name!r}{suggest(name, self.names())}")
        return self._components[name]

    def check(self, options: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
        """The component's keyword arguments from `{name: …, option: value, …}`, types and ranges checked.

        Args:
            where: the configuration key of `options` if it is not the group: `student`.

        Raises:
            ConfigError: unknown name or option, missing option, or a value of the wrong type or outside its range.
        """
        return self._checked(options, where or self.group)[1]

    def _checked(self, options: Mapping[str, Any], where: str) -> tuple[Callable[..., T], dict[str, Any]]:
        if not isinstance(options, Mapping) or not options.get("name"):
            raise ConfigError(
                f"{where}: {options!r} does not say which {self.group} it is; type {{name: NAME, option: value}}. "
                f"Known: {', '.join(self.names())}"
            )
        name = str(options["name"])
        component, given = self.component(name, where=where), {key: options[key] for key in options if key != "name"}
        what = f"{self.group} {name!r}"
        arguments = bind_options(component, given, where=where, what=what, skip=self._injected)
        try:
            check_ranges(component, given)  # as it was typed: -1 and not -1.0
        except ValueError as error:
            raise ConfigError(f"{where}.{error}") from error
        return component, arguments

    def build(self, options: Mapping[str, Any], *, where: str = "", **injected: Any) -> T:
        """Calls the component with its checked options and those of `injected` that it takes.

        Raises:
            ConfigError: as `check`, and where the component refuses a value (its ValueError, prefixed).
        """
        where = where or self.group
        component, arguments = self._checked(options, where)
        wanted = inspect.signature(component).parameters
        supplied = {key: value for key, value in injected.items() if key in wanted}
        try:
            return component(**arguments, **supplied)
        except ValueError as error:
            names_key = str(error).partition(":")[0] in wanted
            raise ConfigError(f"{where}{'.' if names_key else ': '}{error}") from error


def bind_options(
    component: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    where: str,
    what: str,
    skip: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Checks `given` against the signature of `component` and converts values to the annotated types.

    Args:
        where: prefix of the keys in messages: `loss`, `trainer`.
        what: the component in messages: `loss 'kd'`.
        skip: parameters that may not be given.

    Raises:
        ConfigError: unknown or missing option, or a value of the wrong type.
    """
    parameters = {name: p for name, p in inspect.signature(component).parameters.items() if name not in skip}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = typing.get_type_hints(component.__init__ if inspect.isclass(component) else component)
    for key in given:
        if key not in parameters and not open_ended:
            raise ConfigError(f"{where}.{key}: {what} has no option {key!r}{suggest(key, parameters)}")
    for key, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        hint = hints.get(key, Any)
        if required and given.get(key) is None and hint is not Any and type(None) not in typing.get_args(hint):
            raise ConfigError(f"{where}.{key}: {what} needs a value; type {offer(f'{where}.{key}')}")
    return {key: convert(value, hints.get(key, Any), f"{where}.{key}") for key, value in given.items()}


def convert(value: Any, hint: Any, key: str) -> Any:
    """`value` as the annotated type; int → float is the only change of kind that is made.

    Raises:
        ConfigError: if it does not fit; the message names `key`.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, key)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{key}: {value!r} is not possible{suggest(str(value), map(str, arguments))}")
    if origin in (list, tuple, Sequence, Mapping, dict):
        return _convert_collection(value, origin, arguments, key)
    return _convert_plain(value, hint, key)


def _convert_plain(value: Any, hint: Any, key: str) -> Any:
    if hint is float and type(value) is int:
        return float(value)
    if (isinstance(value, bool) and hint is not bool) or (isinstance(hint, type) and not isinstance(value, hint)):
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
        words, example = _KINDS.get(hint, (str(hint), "…"))
        raise ConfigError(f"{key}: {shown} is not {words}; type {offer(key, example)}")
    return value


def _convert_union(value: Any, arguments: tuple[Any, ...], key: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    choices = [hint for hint in arguments if hint is not type(None)]
    for hint in choices[:-1]:
        try:
            return convert(value, hint, key)
        except ConfigError:
            continue
    return convert(value, choices[-1], key)


def _convert_collection(value: Any, origin: Any, arguments: tuple[Any, ...], key: str) -> Any:
    if origin in (Mapping, dict):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}: {value!r} is not a mapping; type {offer(key, '{name: value}')}")
        return {
            name: convert(item, arguments[1] if arguments else Any, f"{key}.{name}") for name, item in value.items()
        }
    if isinstance(value, str) or not isinstance(value, Sequence):
        example = value if isinstance(value, int | float) or re.fullmatch(r"[\w./-]+", str(value)) else "…"
        raise ConfigError(f"{key}: {value!r} is not a list; type {offer(key, f'[{example}]')}")
    fixed = origin is tuple and arguments and arguments[-1] is not Ellipsis
    if fixed and len(value) != len(arguments):
        example = ",".join(_KINDS.get(hint, ("", "…"))[1] for hint in arguments)
        raise ConfigError(f"{key}: needs {len(arguments)} values, not {len(value)}; type {offer(key, f'[{example}]')}")
    hints = arguments if fixed else [arguments[0] if arguments else Any] * len(value)
    items = [convert(item, hint, f"{key}[{i}]") for i, (item, hint) in enumerate(zip(value, hints, strict=True))]
    return tuple(items) if origin is tuple else items


def _identity(component: Callable[..., Any]) -> tuple[str, str]:
    """The same for a module that is imported again, another one for a namesake elsewhere."""
    return component.__module__, component.__qualname__
