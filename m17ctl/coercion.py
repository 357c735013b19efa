"""
Words of the command line to values, without pydantic: typer's own way imports it, which costs a short command 60 ms.

Covers the types that the commands use (text, numbers, flags, paths, choices, lists of them); a parameter of another type
keeps typer's way. This module must never read an option's meaning: that is the command's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin

import typer

if TYPE_CHECKING:
    from typer._click import Command, Context

_TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE: Final = frozenset({"0", "false", "f", "no", "n", "off"})


class Coercion:
    """
    How one parameter's words become its value; stands where typer keeps its own.

    ``leaf`` reads one word; where it is None, ``otherwise`` makes typer's own coercion for a value that was given.
    """

    def __init__(self, leaf: Callable[[Any], Any] | None, otherwise: Callable[[], Any]) -> None:
        self._leaf = leaf
        self._otherwise = otherwise

    def coerce(self, value: Any, param: Any, ctx: Context) -> Any:
        """The value; None and an empty tuple for what was not given."""
        many = bool(getattr(param, "multiple", False)) or getattr(param, "nargs", 1) == -1
        if value is None:
            return () if many else None
        if self._leaf is None:
            return self._otherwise().coerce(value, param=param, ctx=ctx)
        try:
            return [self._leaf(item) for item in value] if many else self._leaf(value)
        except ValueError as error:
            raise typer.BadParameter(str(error), ctx=ctx, param=param) from None


def lighten(command: Command) -> None:
    """Give every parameter of a command a `Coercion`, ``--help`` too; other versions of typer are left as they are."""
    get_params = command.get_params

    def lightened(ctx: Context) -> list[Any]:
        params = list(get_params(ctx))
        for param in params:
            _lighten_parameter(param)
        return params

    vars(command)["get_params"] = lightened


def _lighten_parameter(param: Any) -> None:
    descriptor = getattr(param, "type_descriptor", None)
    otherwise = getattr(param, "get_runtime_param", None)
    if descriptor is None or otherwise is None or "get_runtime_param" in vars(param):
        return
    coercion = Coercion(_leaf(descriptor.annotation, descriptor.parameter_info), otherwise)
    vars(param)["get_runtime_param"] = lambda: coercion


def _leaf(annotation: Any, info: Any) -> Callable[[Any], Any] | None:
    if get_origin(annotation) is list:
        annotation = get_args(annotation)[0]
    if annotation is str:
        return str
    if annotation is bool:
        return _flag
    if annotation in (int, float):
        return _number(annotation, info.min, info.max)
    if annotation is Path:
        return Path
    if get_origin(annotation) is Literal:
        return _choice(get_args(annotation))
    return None


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(f"{value!r} is neither true nor false")
    return word in _TRUE


def _number(kind: type[int | float], least: float | None, most: float | None) -> Callable[[Any], int | float]:
    def read(value: Any) -> int | float:
        try:
            number = kind(value)
        except ValueError:
            noun = "an integer" if kind is int else "a number"
            raise ValueError(f"{value!r} is not {noun}") from None
        # Written so that not-a-number passes neither.
        if (least is not None and not number >= least) or (most is not None and not number <= most):
            bounds = f"at least {least}" if most is None else f"{least} to {most}"
            raise ValueError(f"{value} is out of range: {bounds}")
        return number

    return read


def _choice(words: tuple[str, ...]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(f"{value!r} is not one of {', '.join(words)}")
        return str(value)

    return read
