"""The shell: asyncio and the operating system, one adapter a file; no decisions about residency.

Reading order: `server` (frames in and out), `commands` (requests to events and answers), `supervisor` (the one
owner of the state), `perform` (effects to adapters), `workers` and `zygote` (processes), `calls` (requests in
flight, streams, credit), `views` (state to replies).
"""
