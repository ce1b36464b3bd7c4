"""What engines are told: the orders with which a worker loads a model, or makes a context for a parked one.

Put together from the core's terms, what is registered, and the configuration. Called by `residents`. What an order
says of sizes (batch, outputs, the draft's context) is what the memory plan counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from h2qd.core.drafting import DRAFT_BATCH, draft_ctx
from h2qd.core.plan import batch_tokens, outputs
from h2qd.core.records import Terms
from h2qd.runtime.adapters import Adapters
from h2qd.runtime.shapes import shape_of
from h2qd.runtime.targets import Targets
from h2qd.store.registry import Manifest
from h2qd.wire.messages import KvType
from h2qd.wire.workers import DraftFile, LoadModel, ResumeModel


@dataclass(frozen=True, slots=True)
class Engines:
    """What they are told of the configuration: threads, where sessions are kept and how much of them (0: none).

    `quantize`: what the weights of a model are turned into, by its name; only of those whose are.
    """

    threads: int
    sessions: str
    sessions_bytes: int
    quantize: Mapping[str, str]
    targets: Targets
    adapters: Adapters

    def load_order(
        self, manifest: Manifest, terms: Terms, slots: int, gpu_layers: int, draft: Manifest | None
    ) -> LoadModel:
        """How a worker is to load a model on `terms`, which name `draft`."""
        return LoadModel(
            backend=manifest.backend,
            path=manifest.path,
            ctx=terms.ctx if manifest.remote else terms.ctx * slots,  # a server shares nothing out
            threads=self.threads,
            verified=manifest.identity,
            slots=slots,
            kv_type=_kv_type(terms.kv_type),
            gpu_layers=gpu_layers,
            batch=batch_tokens(slots),
            outputs=outputs(slots),
            sessions=self.sessions if self.sessions_bytes else "",
            sessions_bytes=self.sessions_bytes,
            sha256=manifest.sha256,
            quantize=self.quantize.get(manifest.name, ""),
            remote=self.targets.of(manifest.remote) if manifest.remote else None,
            adapters=self.adapters.files(manifest.name),
            draft=None if draft is None else DraftFile(draft.name, draft.path, draft.identity),
            draft_ctx=_draft_ctx(terms, draft),
            draft_batch=DRAFT_BATCH,
        )

    @staticmethod
    def resume_order(terms: Terms, slots: int, draft: Manifest | None) -> ResumeModel:
        """How a parked worker is to make a context on `terms`, and one for its draft."""
        return ResumeModel(
            terms.ctx * slots,
            slots,
            _kv_type(terms.kv_type),
            batch=batch_tokens(slots),
            outputs=outputs(slots),
            draft_ctx=_draft_ctx(terms, draft),
            draft_batch=DRAFT_BATCH,
        )


def _draft_ctx(terms: Terms, draft: Manifest | None) -> int:
    """The context of the draft that a load has; 0 where it has none."""
    return 0 if draft is None else draft_ctx(shape_of(draft.facts), terms.ctx)


def _kv_type(name: str) -> KvType:
    """A name of a KV cache type, as the wire knows it."""
    return next(kind for kind in get_args(KvType) if kind == name)
