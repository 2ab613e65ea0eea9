"""Whether a commit that was answered can be lost when the database fails over. Pure.

A claim is committed before the channel is called. If the commit is lost, its recipient is sent to again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Durability:
    """When the server answers a commit, and who follows it."""

    commits: str
    """Postgres's `synchronous_commit`: on, remote_apply, remote_write, local or off."""
    standbys: str
    """Postgres's `synchronous_standby_names`; empty for none."""
    followers: int
    """How many receive its log now: standbys, and backups that stream."""
    slots: int
    """For how many it keeps its log: physical replication slots."""


def doubt(durability: Durability, hosts: int) -> str:
    """Returns why a commit that was answered can be lost; empty if nothing says that it can.

    Args:
        durability: What the server says.
        hosts: How many hosts the database's URL names: with several a failover is meant.
    """
    commits = f"synchronous_commit is {durability.commits}"
    if durability.commits == "off":
        return f"{commits}: a crash of the server loses claims, and their recipients are sent to again."
    if durability.standbys and durability.commits != "local":
        return ""
    seen = [
        f"{durability.followers} {'receives' if durability.followers == 1 else 'receive'} its log"
        if durability.followers
        else "",
        f"it keeps its log for {durability.slots} by a slot" if durability.slots else "",
        f"SENDOFF_DATABASE_URL names {hosts} hosts" if hosts > 1 else "",
    ]
    if not any(seen):
        return ""
    waits = commits if durability.standbys else "synchronous_standby_names is empty"
    return (
        f"The database seems to have a standby ({', '.join(filter(None, seen))}), and a commit does not"
        " wait for it"
        f" ({waits}): a failover can lose the last claims, and their recipients are then sent to again. See"
        " “Standbys” in docs/operations.md."
    )
