"""The pure core: what should happen. No I/O, no clock, no logging, no asyncio; values in, values out.

Reading order: `states` (the residency table), `records`, `events`, `effects`, `machine` (the one door), then
what it decides with: `admission`, `switching`, `failures`, `plan`; `invariants` says what always holds.
"""
