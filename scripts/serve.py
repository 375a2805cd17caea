"""`rheo serve RUN`: a policy that answers observations, over WebSocket.

The event loop moves bytes; one thread of its own holds the policy and does all that is asked of
it, in the order in which it comes. A connection is a session (`session.py`).
"""

import asyncio
import hmac
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from threading import Thread
from typing import Any

import numpy as np
import torch
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from rheo.envs.families import POSITIONS
from rheo.errors import MACHINE, RheoError

from .config.serving import MEBIBYTE, Serving, is_program
from .episodes import Episodes
from .export import rate
from .policy import Policy
from .programmed import Programmed
from .session import Session
from .worlds import real

log = logging.getLogger("rheo")
PROTOCOL = 1
HEALTH = "/health"
ABSOLUTE = ("'input_type': 'absolute'", "'control_delta': False")  # of robosuite's controllers


class Server:
    """A policy and the connections that it answers.

    pool: the one thread in which the policy was made and acts. delay: seconds that answers are held
    back.
    """

    def __init__(
        self, policy: Episodes, about: Mapping[str, Any], asked: Serving, pool: ThreadPoolExecutor
    ) -> None:
        self.policy, self.about, self.asked, self.pool = policy, about, asked, pool
        self.delay, self.slots, self.answered = asked.delay / 1000, set[int](), 0

    async def until(self, stop: asyncio.Event, sock: socket.socket) -> None:
        """Answers whoever comes to a socket, until it is told to stop; then closes with 1001."""
        wire = logging.getLogger("rheo.wire")  # what strangers send is no news
        wire.setLevel(logging.CRITICAL)
        limits: dict[str, Any] = {"max_size": int(self.asked.frame * MEBIBYTE), "compression": None}
        limits |= {"origins": [None], "process_request": self.admit, "logger": wire}
        async with serve(self.talk, sock=sock, close_timeout=1, **limits):
            await stop.wait()

    def admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Health, or whether who knocks may come in. No web page may: it would send its Origin."""
        path, token = request.path.partition("?")[0], self.asked.token
        if path == HEALTH:
            told = {"status": "ok", "clients": len(self.slots), "answered": self.answered}
            return connection.respond(HTTPStatus.OK, json.dumps(told) + "\n")
        if path != "/":
            return connection.respond(HTTPStatus.NOT_FOUND, f"there is / and {HEALTH}\n")
        given = " ".join(request.headers.get_all("Authorization"))
        wanted = f"Bearer {token}"
        if token is not None and not hmac.compare_digest(given.encode(), wanted.encode()):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "another token is needed\n")
        if len(self.slots) >= self.asked.clients:
            text = f"{self.asked.clients} clients are connected, as many as clients= allows\n"
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, text)
        return None

    async def talk(self, connection: ServerConnection) -> None:
        """One connection, from its beginning to its end."""
        taken, most = self.slots, self.asked.rows
        slot = next(i for i in range(len(taken) + 1) if i not in taken)
        if slot >= self.asked.clients:  # several came through the door at once
            await connection.close(1013, "no room for another client")
            return
        taken.add(slot)
        loop = asyncio.get_running_loop()
        try:
            session = Session(self.policy, self.about, slot * most, most)
            async for frame in connection:
                answer = await loop.run_in_executor(self.pool, session.answer, frame)
                if answer is not None:
                    self.answered += 1
                    await asyncio.sleep(self.delay)
                    await connection.send(answer)
        except ConnectionClosed:  # whoever left while an answer was made
            pass
        finally:
            taken.discard(slot)


# ---- what is served ------------------------------------------------------------------------------


def main(asked: Serving) -> int:
    """Serves until SIGINT or SIGTERM, which end it with 0; or tries itself out (check=true)."""
    sock = bound(asked)
    with sock, ThreadPoolExecutor(1, "policy") as pool:
        server = pool.submit(made, asked, pool).result()
        if asked.check:
            from .pace import check

            with beside(server, sock) as url:
                return check(server, url)
        print(told(server, sock), flush=True)
        asyncio.run(ended_by_signals(server, sock))
        print(f"ended; {server.answered} answers", flush=True)
    return 0


def bound(asked: Serving) -> socket.socket:
    """The socket, before anything slow is done. Raises RheoError."""
    family = socket.AF_INET6 if ":" in asked.host else socket.AF_INET
    try:
        made = socket.create_server((asked.host, asked.port), family=family)
    except OSError as error:
        place = f"host={asked.host} port={asked.port}"
        remedy = "; choose another port=, or port=0 for a free one"
        text = os.strerror(error.errno) if error.errno and error.errno > 0 else error
        raise RheoError(f"{place}: {text}{remedy}", MACHINE) from error
    # asyncio sends at once (TCP_NODELAY) where a socket names its protocol, which this one does not
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, made.detach())


def made(asked: Serving, pool: ThreadPoolExecutor) -> Server:
    """The server of a run; called in the thread that acts, whose settings decide the last bits."""
    if is_program(asked.run):
        torch.set_num_threads(1)
        program = Programmed(asked.run, asked.seed)
        return Server(program, described(program, of_program(program.contract), asked), asked, pool)
    policy = Policy(asked.run, seed=asked.seed, flags=asked.flagged)
    return Server(policy, described(policy, of_run(policy), asked), asked, pool)


def of_run(policy: Policy) -> dict[str, Any]:
    """Where a run's policy comes from, and what its environment tells."""
    run, env = policy.run, real(policy.run.config["env"] or {})
    try:
        hz = rate(run)
    except RheoError:  # without its package the policy acts all the same
        hz = None
    name = type(policy.algo).__name__
    known = {"step": run.step, "algorithm": name, "environment": env.get("id")}
    return {**known, "rate_hz": hz, "hold": safe(env)}


def of_program(contract: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a program, which does not tell what its actions are."""
    keys = ("step", "algorithm", "environment", "rate_hz")
    return {**{key: contract[key] for key in keys}, "hold": None}


def described(policy: Episodes, known: Mapping[str, Any], asked: Serving) -> dict[str, Any]:
    """What a client is told."""
    numbers = {key: n for key, n in policy.obs_parts.items() if key not in policy.images}
    images = {key: [*size, 3] for key, size in policy.images.items()}
    return {
        "protocol": PROTOCOL,
        "run": policy.origin,
        **known,
        "observation": {"parts": numbers, "images": images, "steps": policy.steps},
        "action": {"low": policy.action_low.tolist(), "high": policy.action_high.tolist()},
        "plan": {"steps": policy.usable, "executed": policy.execute},
        "continued": goes_on(policy),
        "hold": asked.hold or known["hold"],
    }


def goes_on(policy: Episodes) -> bool:
    """Whether plans go on from what is left of the last one, or merely begin with it."""
    if policy.corrects:  # there are no plans to ask for
        return False
    tried = policy.sibling(policy.seed)
    tried.see(np.zeros((1, sum(policy.obs_parts.values())), np.float32))
    middle = (policy.action_low + policy.action_high) / 2
    return tried.chunk(np.tile(middle, (1, 1, 1)), 1)[1]


def safe(env: Mapping[str, Any]) -> str | None:
    """What a client does without a plan: "last", "neutral", or None where nothing tells."""
    name, options = env.get("id"), str(env.get("options"))
    if name is None:
        return None
    absolute = any(word in options for word in ABSOLUTE)
    return "last" if name.startswith(POSITIONS) or absolute else "neutral"


def told(server: Server, sock: socket.socket) -> str:
    """Lines for a person."""
    about, asked = server.about, server.asked
    parts = about["observation"]["parts"] | about["observation"]["images"]
    hold = {"last": "the last action", "neutral": "0", None: "as the client says (hold=)"}
    plans = "go on from the last" if about["continued"] else "begin with what is executed"
    return "\n".join(
        [
            f"{about['run']}, step {about['step']}, {about['algorithm']}: {address(sock)}",
            f"observation {parts}, action [{len(about['action']['low'])}], plans of "
            f"{about['plan']['steps']} steps, which {plans}; without one: {hold[about['hold']]}",
            f"token {'needed' if asked.token else 'not needed'}; {asked.clients} clients at most; "
            "Ctrl-C ends it",
        ]
    )


def address(sock: socket.socket) -> str:
    """Where a socket is reached."""
    host, port = sock.getsockname()[:2]
    return f"ws://{f'[{host}]' if ':' in host else host}:{port}"


# ---- its life ------------------------------------------------------------------------------------


async def ended_by_signals(server: Server, sock: socket.socket) -> None:
    """Serves until SIGINT or SIGTERM."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await server.until(stop, sock)


@contextmanager
def beside(server: Server, sock: socket.socket) -> Iterator[str]:
    """Serves in a thread of its own while this lasts; yields the address."""
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = Thread(target=lambda: loop.run_until_complete(server.until(stop, sock)))
    thread.start()
    try:
        yield address(sock)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
