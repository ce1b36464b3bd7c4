"""Configuration: YAML, environment and options become one frozen `Config`; nothing else in the daemon reads them.

Reading order: `units` (text to numbers), `kinds` (what a key may hold), `schema` (the keys and their defaults),
`document` (YAML to a bounded tree), `table` (the tree's values, checked), `places` (where sockets and state live),
`reader` (all of it to a `Config`), `reference` (the page in configs/README.md).
The invariant: a `Config` that exists is valid.
"""

from h2qd.config.faults import ConfigError, Fault
from h2qd.config.reader import OPTIONS, VARIABLES, load_config
from h2qd.config.schema import Config

__all__ = ["OPTIONS", "VARIABLES", "Config", "ConfigError", "Fault", "load_config"]
