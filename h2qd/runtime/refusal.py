"""How a handler or a job says no: an exception that carries what the client hears."""

from h2qd.core.records import Fault


class Refusal(Exception):  # noqa: N818 - it is an answer
    """A request that is refused, or has failed for a reason that its client can act on."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault
