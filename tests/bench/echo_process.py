"""The plainest asyncio server on ZeroMQ: a ROUTER that answers each message with fixed frames, as large as a status
reply of the daemon. `python -m tests.bench.echo_process SOCKET BYTES BYTES`. Ends with its standard input.
"""

import asyncio
import sys

import zmq
import zmq.asyncio


async def echo(path: str, sizes: list[int]) -> None:
    """Answer until cancelled."""
    reply = [bytes(size) for size in sizes]
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind(f"ipc://{path}")
        print("ready", flush=True)
        while True:
            identity, *_ = await router.recv_multipart()
            await router.send_multipart([identity, *reply])


async def main() -> None:
    """Echo until standard input ends."""
    serving = asyncio.create_task(echo(sys.argv[1], [int(size) for size in sys.argv[2:]]))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())
