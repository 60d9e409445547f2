"""Tenants that are part of others, and what that opens to whom. Values in, decision out."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from bakerygw.core.claims import Claims, TenantAccess, is_id

MAX_STEPS: Final = 8
"""Parents that are followed, one from the other."""


def ancestors_of(tenant_id: str, parent_of: Callable[[str], str | None]) -> tuple[str, ...]:
    """Its parent, that one's parent, and so on: at most `MAX_STEPS`, none twice and never the tenant itself.

    `parent_of` gives what is stored as a tenant's parent; what is no id ends the chain.
    """
    chain = [tenant_id]
    while len(chain) <= MAX_STEPS:
        parent = parent_of(chain[-1])
        if parent is None or not is_id(parent) or parent in chain:
            break
        chain.append(parent)
    return tuple(chain[1:])


def possible_child(claims: Claims, path_tenant: str | None, header_values: tuple[bytes, ...]) -> str | None:
    """The tenant that a request names, if only an entry with `include_children` could open it; else `None`.

    `None` too for whatever is refused without knowing any parent: two tenants that differ, what is no id, a demo
    session elsewhere than at home, a token without such an entry.
    """
    if path_tenant is None and not header_values:
        return None
    name = path_tenant if path_tenant is not None else header_values[0].decode("latin-1")
    if name == claims.tenant_id or claims.is_demo or any(value.decode("latin-1") != name for value in header_values):
        return None
    includes = False
    for entry in claims.tenant_access:
        if entry.tenant_id == name:
            return None
        includes = includes or entry.include_children
    return name if includes and is_id(name) else None


def covering_entry(claims: Claims, ancestors: tuple[str, ...]) -> TenantAccess | None:
    """The entry with `include_children` for the nearest of these ancestors."""
    covering = {entry.tenant_id: entry for entry in claims.tenant_access if entry.include_children}
    return next((covering[ancestor] for ancestor in ancestors if ancestor in covering), None)


def with_child(claims: Claims, child: str, entry: TenantAccess) -> Claims:
    """The claims with `entry` held for `child` too."""
    inherited = replace(entry, tenant_id=child, include_children=False, via=entry.tenant_id)
    return replace(claims, tenant_access=(*claims.tenant_access, inherited))
