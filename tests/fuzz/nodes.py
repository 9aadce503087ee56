"""Trees of dictionaries and lists, as JSON, YAML and training states hold them: where there is something, and how one
place is changed."""

from __future__ import annotations

from typing import Any

from .values import TWICE

#: Of lists of like records so many are looked at, and so many places in all.
RECORDS, MOST = 6, 20_000


def paths_of(tree: Any) -> list[list[str | int]]:
    """The paths of all places, the root's first."""
    found: list[list[str | int]] = []
    waiting: list[tuple[Any, list[str | int]]] = [(tree, [])]
    while waiting and len(found) < MOST:
        value, path = waiting.pop()
        found.append(path)
        if isinstance(value, dict):
            waiting += [(item, [*path, key]) for key, item in value.items() if isinstance(key, str | int)]
        elif isinstance(value, list | tuple):
            waiting += [(item, [*path, i]) for i, item in enumerate(value[:RECORDS])]
    return found


def at(tree: Any, path: list[str | int]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def with_value(tree: Any, path: list[str | int], value: Any) -> Any:
    """The tree, changed in place, with another value at ``path``."""
    if not path:
        return value
    at(tree, path[:-1])[path[-1]] = value
    return tree


def changed_tree(tree: Any, path: list[str | int], change: str, value: Any) -> Any:
    """The tree, changed in place.

    ``change``: ``set`` to the value, ``delete``, ``repeat`` an item of a list, ``wrap`` in a list, ``rename`` a key to
    the value, ``twice`` the same key with null, as ``text`` or the number that a text holds, ``swap`` with what stands
    at the path that ``value`` is.
    """
    own = at(tree, path)
    if change == "set":
        return with_value(tree, path, value)
    if change == "wrap":
        return with_value(tree, path, [own])
    if change == "text":
        return with_value(tree, path, float(own) if isinstance(own, str) else str(own))
    if change == "swap":
        tree = with_value(tree, path, at(tree, value))
        return with_value(tree, value, own)
    if not path:
        return None
    holder, key = at(tree, path[:-1]), path[-1]
    if change == "delete":
        del holder[key]
    elif change == "repeat" and isinstance(holder, list) and isinstance(key, int):
        holder.insert(key, own)
    elif change == "rename" and isinstance(holder, dict):
        holder[value] = holder.pop(key)
    elif change == "twice" and isinstance(holder, dict):
        holder[f"{key}{TWICE}"] = None
    return tree
