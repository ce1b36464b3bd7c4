"""The protocol: bytes to typed messages and back. Pure; PROTOCOL.md beside this file is the authority.

Reading order: `limits`, `codes`, `frames`, `messages`, `catalogue` (what clients say), then
`workers` (what the supervisor and its worker processes say to each other).
"""
