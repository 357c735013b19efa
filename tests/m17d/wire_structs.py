"""Hypothesis strategies for every struct on the wire, made from their types: what msgspec would accept, nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)
_PATTERNS = {r"^\d{4}-\d{2}-\d{2}$": r"[0-9]{4}-[0-9]{2}-[0-9]{2}", "^/": r"/[a-z]{0,9}"}
"""Patterns of fields, as a strategy should read them: \\d of Unicode digits and open ends would pass as well."""


def struct_of(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Values of a struct: every field, or left out where it has a default."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return _struct(info)


def _struct(info: inspect.StructType) -> st.SearchStrategy[Any]:
    required = {field.name: _of(field.type) for field in info.fields if field.required}
    optional = {field.name: _of(field.type) for field in info.fields if not field.required}
    made = st.fixed_dictionaries(required, optional=optional)
    return made.map(lambda fields: info.cls(**fields))


def _of(info: inspect.Type) -> st.SearchStrategy[Any]:
    match info:
        case inspect.StructType():
            # Some hold others of their own kind.
            return st.deferred(lambda: _struct(info))
        case inspect.UnionType():
            return st.one_of([_of(one) for one in info.types])
        case inspect.ListType():
            return st.lists(_of(info.item_type), min_size=info.min_length or 0, max_size=min(info.max_length or 3, 3))
        case inspect.DictType():
            return st.dictionaries(_of(info.key_type), _of(info.value_type), max_size=3)
        case inspect.IntType():
            least = -(2**63) if info.ge is None else info.ge
            return st.integers(least, 2**63 - 1 if info.le is None else info.le)
        case inspect.StrType() if info.pattern:
            return st.from_regex(_PATTERNS[info.pattern], fullmatch=True)
        case inspect.StrType():
            return st.text(st.characters(codec="utf-8"), min_size=info.min_length or 0, max_size=12)
        case _:
            return _plain(info)


def _plain(info: inspect.Type) -> st.SearchStrategy[Any]:
    match info:
        case inspect.LiteralType():
            return st.sampled_from(list(info.values))
        case inspect.EnumType():
            return st.sampled_from(list(info.cls))
        case inspect.BoolType():
            return st.booleans()
        case inspect.FloatType():
            return st.floats(allow_nan=False)
        case inspect.NoneType():
            return st.none()
        case inspect.AnyType():
            return _ANY
        case inspect.TupleType():
            return st.tuples(*(_of(one) for one in info.item_types))
        case inspect.VarTupleType():
            return st.lists(_of(info.item_type), max_size=3).map(tuple)
        case _:
            raise AssertionError(f"no strategy for {info}: a field of a new kind came onto the wire")
