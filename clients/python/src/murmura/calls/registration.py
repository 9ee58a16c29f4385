"""What is asked when rows are registered: where they are, and the first policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from murmura import policy as policies
from murmura.api.dataset.v1 import dataset_pb2
from murmura.api.dataset.v1 import dataset_service_pb2 as messages
from murmura.calls import Call, qualified, request_id
from murmura.errors import InvalidInput


@dataclass(frozen=True)
class Table:
    """A table or view of a database; `murmura.table` makes one.

    Attributes:
        name: as the database lists it; `schema.table` where it is not in the default schema.
        connection: the name that the operator gave the database in MURMURA_DATABASES.
    """

    name: str
    connection: str


def table(name: str, *, connection: str) -> Table:
    """Name a table or view to register. For a query, have a view made of it in the database.

    Args:
        name: as the database lists it; `schema.table` where it is not in the default schema.
        connection: the name that the operator gave the database in MURMURA_DATABASES. Credentials never travel.

    Raises:
        InvalidInput: if it is a query, or a URL is given in place of the connection's name.
    """
    if not name.strip() or name.split()[0].lower() in ("select", "with"):
        raise InvalidInput("Name a table or a view. Rows of a query: CREATE VIEW … AS SELECT …, and name the view.")
    if not connection or "://" in connection:
        # The URL is not repeated: it may hold a password.
        raise InvalidInput(
            "The connection is a name, not a URL: credentials never travel. The operator configures it in "
            "MURMURA_DATABASES, as {name: SQLAlchemy URL}."
        )
    return Table(name, connection)


def register_dataset(
    subject: str,
    name: str,
    source: str | Path | Table,
    *,
    privacy_unit: str,
    epsilon: float | None = None,
    delta: float | None = None,
    policy: str | Path | dataset_pb2.Policy | None = None,
    unlimited_allowed: bool = False,
    unit_noise_multiplier: float = 0.0,
    unit_sampling_probability: float = 0.0,
    display_name: str = "",
    derived_from: str = "",
) -> Call:
    """Register rows; a stream. The same call again is the same request.

    Raises:
        InvalidInput: if the policy is incomplete, said twice, or a file that breaks its schema.
    """
    request = messages.RegisterDatasetRequest(
        dataset_id=name.removeprefix("datasets/"),
        display_name=display_name,
        source=_source(source),
        privacy_unit_column=privacy_unit,
        derived_from=qualified("datasets", derived_from) if derived_from else "",
        policy=_policy(
            name,
            policy,
            epsilon=epsilon,
            delta=delta,
            unlimited_allowed=unlimited_allowed or None,
            unit_noise_multiplier=unit_noise_multiplier or None,
            unit_sampling_probability=unit_sampling_probability or None,
        ),
    )
    request.request_id = request_id(subject, request)
    return Call("dataset", "RegisterDataset", request, timeout_s=None)


def _source(source: str | Path | Table) -> dataset_pb2.Source:
    if isinstance(source, Table):
        return dataset_pb2.Source(sql=dataset_pb2.SqlSource(connection=source.connection, table=source.name))
    location = str(source) if "://" in str(source) else str(Path(source).resolve())
    return dataset_pb2.Source(file=dataset_pb2.FileSource(url=location))


def _policy(dataset: str, policy: str | Path | dataset_pb2.Policy | None, **terms: float | None) -> dataset_pb2.Policy:
    """Return the policy that a registration asks for: that of a file or message, or one of a few terms."""
    said = {term: value for term, value in terms.items() if value is not None}
    if policy is None:
        if missing := [term for term in ("epsilon", "delta") if term not in said]:
            raise InvalidInput(f"A dataset has a cap: pass {'=…, '.join(missing)}=…, or policy='phee.policy.yaml'.")
        return dataset_pb2.Policy(**said)  # type: ignore[arg-type]
    if said:
        raise InvalidInput(f"{', '.join(said)}: the policy says that already. Write it there, or leave policy out.")
    if isinstance(policy, dataset_pb2.Policy):
        return policy
    found = policies.read(policy)
    policies.for_dataset(found, dataset)
    return found.policy
