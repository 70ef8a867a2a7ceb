"""Groups: models, jobs and results that only some people see.

The name of a group's model begins with `@GROUP/`. Its jobs belong to the group, as do jobs that were submitted for a
group. A job is seen by its group, its subscribers and admins. An artifact is seen by everybody unless it is known from
jobs of groups alone; an analysis belongs to all jobs of its model.
"""

from sqlalchemy import ColumnElement, and_, exists, or_, select, true

from cluster.service.data.database import Database
from cluster.service.data.records import Person
from cluster.service.data.tables import artifacts, identities, jobs, watchers

MARK = "@"


def group_of(model: str) -> str:
    """The group of a model by its name; empty for a model of everybody."""
    prefix, slash, _ = model.partition("/")
    return prefix.removeprefix(MARK) if slash and prefix.startswith(MARK) else ""


def sees(person: Person, group: str) -> bool:
    """True if a person sees what belongs to a group."""
    return not group or group in person.groups or person.may("admin")


def visible_jobs(person: Person | None) -> ColumnElement[bool]:
    """The condition of the jobs that a person sees; None sees all."""
    if person is None or person.may("admin"):
        return true()
    wants = exists().where(watchers.c.job == jobs.c.number, watchers.c.name == person.name)
    return or_(jobs.c.group.in_(["", *person.groups]), wants)


def visible_artifacts(person: Person | None) -> ColumnElement[bool]:
    """The condition of the artifacts that a person sees; None sees all."""
    if person is None or person.may("admin"):
        return true()
    of_model = and_(artifacts.c.kind == "analysis", jobs.c.identity == artifacts.c.identity)
    made = or_(jobs.c.artifact == artifacts.c.digest, of_model)
    of_group = exists().where(made, jobs.c.group != "")
    return or_(~of_group, exists().where(made, visible_jobs(person)))


def sees_model(database: Database, person: Person, identity: str) -> bool:
    """True if a person sees a model under one of the names that its content ever had here, or if it never had one."""
    named = select(jobs.c.model).where(jobs.c.identity == identity)
    listed = select(identities.c.path).where(identities.c.identity == identity)
    names = {name for (name,) in (*database.rows(named.distinct()), *database.rows(listed))}
    return not names or any(sees(person, group_of(name)) for name in names)
