"""`enginehouse COMMAND`: each is a file beside this one."""

import argparse
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

import msgspec

from enginehouse.config.load import BadConfig, convert, find, load
from enginehouse.config.schema import Config
from enginehouse.optimize.artifact import CannotBuild
from enginehouse.runtimes.engines import runtimes
from enginehouse.runtimes.errors import Unavailable, UnknownModel
from enginehouse.runtimes.tool_calls.parsers import parsers
from enginehouse.runtimes.upstream.request import KNOWN
from enginehouse.server.cli.client import Failed
from enginehouse.server.cli.launch import AGENTS

OLLAMA_PORT = 11434
SEND_BUFFER_BYTES = 128 * 1024  # in the kernel, which would hold megabytes for a client that reads nothing


def main() -> None:
    own, further = sys.argv[1:], list[str]()
    if own[:1] == ["launch"] and "--" in own:  # argparse would read what stands behind it
        own, further = own[: own.index("--")], own[own.index("--") + 1 :]
    arguments = parser(further).parse_args(own)
    level = arguments.log_level or ("info" if arguments.name == "serve" else "warning")
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "watchfiles"):  # a line for each request; for each change beside the config, a log's too
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
    try:
        arguments.command(arguments)
    except (BadConfig, CannotBuild, UnknownModel, Unavailable, Failed) as error:
        sys.exit(f"enginehouse: {error}")
    except BrokenPipeError:  # who reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)


def parser(further: Sequence[str] = ()) -> argparse.ArgumentParser:
    enginehouse = argparse.ArgumentParser(
        prog="enginehouse", description="One OpenAI-compatible endpoint in front of every local LLM engine."
    )
    enginehouse.add_argument("--version", action="version", version=version("enginehouse"))
    commands = enginehouse.add_subparsers(required=True, metavar="COMMAND")
    serving = command(commands, "serve", serve, "serve the models of the config file")
    add_address(serving, "address to listen on, over the config's", "port to listen on, over the config's")
    talking = command(commands, "chat", chat, "talk with a model here; starts a server where none runs")
    talking.add_argument("model", metavar="MODEL", nargs="?", help="else the first of the config")
    talking.add_argument("--system", metavar="TEXT", help="how it is to answer")
    running = command(commands, "run", run, "one answer on the standard output, also of what is piped in")
    running.add_argument("model", metavar="MODEL")
    running.add_argument("prompt", metavar="PROMPT", nargs="*")
    running.add_argument("--system", metavar="TEXT", help="how it is to answer")
    running.add_argument("--max-tokens", metavar="N", type=int)
    running.add_argument("--temperature", metavar="T", type=float)
    pulling = command(
        commands, "pull", pull, "fetch a model of the config or of the hub; --local: what is here already"
    )
    pulling.add_argument("model", metavar="MODEL", nargs="?", help="of the config, or OWNER/NAME on the hub")
    pulling.add_argument("--file", metavar="FILE.gguf", help="this one of the repository")
    pulling.add_argument("--revision", metavar="R", help="branch, tag or commit")
    pulling.add_argument("--local", action="store_true", help="models of the hub's cache, LM Studio and Ollama here")
    pulling.add_argument("--json", action="store_true", help="with --local")
    command(commands, "ps", ps, "what the server has loaded").add_argument("--json", action="store_true")
    watching = command(commands, "top", top, "what the server does now, anew every two seconds; q ends it")
    watching.add_argument("--once", action="store_true", help="once, since its start")
    watching.add_argument("--json", action="store_true", help="the same for programs")
    command(commands, "stop", stop, "unload a model").add_argument("model", metavar="MODEL")
    launching = command(commands, "launch", launch, "start a coding agent on a model here; its own arguments follow --")
    launching.set_defaults(further=further)
    launching.add_argument("agent", choices=list(AGENTS))
    launching.add_argument("--model", metavar="MODEL", help="else the first of the config")
    listing = command(commands, "models", models, "the models of the config file and what is kept of them")
    listing.add_argument("--json", action="store_true")
    listing.add_argument("--verify", action="store_true", help="read all of it; exits with 1 when a file has changed")
    building = command(commands, "optimize", optimize, "build what would serve a model, before it is asked for")
    building.add_argument("model", metavar="MODEL")
    building.add_argument("--runtime", metavar="R", help="for this one instead of the best")
    building.add_argument("--precision", metavar="P", help="this one instead of the config's")
    building.add_argument("--force", action="store_true", help="though it was built already")
    pruning = command(commands, "prune", prune, "remove what was used least recently until the cache fits a size")
    pruning.add_argument("--budget", metavar="SIZE", required=True, help="20GiB, 500MiB; 0GiB = all that is not in use")
    pruning.add_argument("--dry-run", action="store_true", help="say what would be removed")
    benching = command(commands, "bench", bench, "time a model on each runtime of this host, and keep the figures")
    benching.add_argument("model", metavar="MODEL")
    benching.add_argument("--runtime", metavar="R", nargs="+", help="only these")
    benching.add_argument("--precision", metavar="P", nargs="+", help="these instead of the config's")
    benching.add_argument("--prompts", metavar="FILE.jsonl", help="time it on these instead of tokens by chance")
    benching.add_argument("--plot", metavar="FILE.svg", help="draw speed against quality and memory")
    benching.add_argument("--json", action="store_true")
    explaining = command(commands, "explain", explain, "which runtime serves a model and why, with the numbers")
    explaining.add_argument("model", metavar="MODEL")
    explaining.add_argument("--json", action="store_true")
    asking = command(commands, "health", health, "whether the server of the config answers; exits with 1 when not")
    add_address(asking, "address that it listens on, over the config's", "port that it listens on, over the config's")
    checking = command(commands, "config", config, "check the config; or its JSON Schema, for editors")
    checking.add_argument("what", choices=["check", "schema"])
    checking.add_argument("file", metavar="FILE", nargs="?", help="to check, in the place of --config")
    command(commands, "doctor", doctor, "what this machine has and lacks; exits with 1 when it cannot serve")
    completing = command(commands, "completion", completion, "what makes a shell complete these commands; see --help")
    completing.description = 'eval "$(enginehouse completion bash)" in ~/.bashrc, or zsh in ~/.zshrc'
    completing.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return enginehouse


def command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], None],
    help: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(command=run, name=name)
    parser.add_argument(
        "--config", metavar="FILE", help="else $ENGINEHOUSE_CONFIG, ./enginehouse.yaml, or the built-in config"
    )
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"])
    return parser


def add_address(command: argparse.ArgumentParser, host: str, port: str) -> None:
    command.add_argument("--host", help=host)
    command.add_argument("--port", type=int, help=port)


def chat(arguments: argparse.Namespace) -> None:
    from enginehouse.server.cli import chat

    chat.chat(configured(arguments), arguments.config, arguments.model, arguments.system)


def run(arguments: argparse.Namespace) -> None:
    from enginehouse.server.cli import chat

    given = {key: getattr(arguments, key) for key in ("system", "max_tokens", "temperature")}
    given = {key: value for key, value in given.items() if value is not None}
    chat.run(configured(arguments), arguments.config, arguments.model, arguments.prompt, **given)


def pull(arguments: argparse.Namespace) -> None:
    from enginehouse.server.cli import pull

    config = configured(arguments)
    if arguments.local:
        pull.local(config, arguments.json)
    elif arguments.model:
        pull.pull(config, arguments.model, arguments.file, arguments.revision)
    else:
        raise BadConfig("pull: name a model, or say --local")


def ps(arguments: argparse.Namespace) -> None:
    from enginehouse.server.cli import ps

    ps.ps(configured(arguments), arguments.json)


def top(arguments: argparse.Namespace) -> None:
    from enginehouse.server.cli import top

    top.top(configured(arguments), arguments.once, arguments.json)


def stop(arguments: argparse.Namespace) -> None:
    from enginehouse.server.cli import ps

    ps.stop(configured(arguments), arguments.model)


def launch(arguments: argparse.Namespace) -> None:
    from enginehouse.server.cli import launch

    asked = arguments.agent, arguments.model, arguments.further
    sys.exit(launch.run(configured(arguments), arguments.config, *asked))


def models(arguments: argparse.Namespace) -> None:
    from enginehouse.server.cli import cache

    sys.exit(cache.models(configured(arguments), arguments.json, arguments.verify))


def prune(arguments: argparse.Namespace) -> None:
    from enginehouse.server.cli import cache

    cache.prune(configured(arguments), arguments.budget, arguments.dry_run)


def optimize(arguments: argparse.Namespace) -> None:
    from enginehouse.server.cli import optimize

    optimize.run(configured(arguments), arguments.model, arguments.runtime, arguments.precision, arguments.force)


def bench(arguments: argparse.Namespace) -> None:
    from enginehouse.server.cli import bench

    asked = arguments.model, arguments.runtime, arguments.precision, arguments.prompts, arguments.json, arguments.plot
    bench.run(configured(arguments), *asked)


def explain(arguments: argparse.Namespace) -> None:
    from enginehouse.server.cli import bench

    bench.explain(configured(arguments), arguments.model, arguments.json)


def completion(arguments: argparse.Namespace) -> None:
    import shtab

    print(shtab.complete(parser(), arguments.shell))


def config(arguments: argparse.Namespace) -> None:
    from enginehouse.server.cli import config

    if arguments.what == "schema":
        if arguments.file or arguments.config:
            raise BadConfig("'config schema' is of any config: it takes no file")
        config.schema()
        return
    arguments.config = arguments.file or arguments.config
    config.check(str(find(arguments.config, os.environ)), lambda: servable(arguments))


def doctor(arguments: argparse.Namespace) -> None:
    from enginehouse.server.cli import doctor

    sys.exit(doctor.run(lambda: configured(arguments)))


def health(arguments: argparse.Namespace) -> None:
    from enginehouse.server.cli import health

    sys.exit(health.run(with_flags(load(arguments.config), arguments).server))


def serve(arguments: argparse.Namespace) -> None:
    from enginehouse.server import app, logs, serving
    from enginehouse.server.reload import ConfigFile, bytes_of

    def read() -> Config:
        return servable(arguments)

    path = find(arguments.config, os.environ).absolute()
    file = ConfigFile(path, bytes_of(path), read)
    config = read()
    logs.configure(config.server)
    listeners = [listen(config.server.host, config.server.port)]
    if config.server.ollama and config.server.port != OLLAMA_PORT:
        listeners.append(listen(config.server.host, OLLAMA_PORT, "stop Ollama, or leave out server.ollama"))
    host, port = listeners[0].getsockname()[:2]
    models = ", ".join(config.models)
    logging.getLogger("enginehouse").info(
        "http://%s:%d/v1 serves %s", f"[{host}]" if ":" in host else host, port, models
    )
    status = 0
    try:
        serving.run(app.create(config), file, listeners)
    except KeyboardInterrupt:
        status = 130
    logging.shutdown()
    os._exit(status)  # a thread that waits for a dead disk would keep the process for ever


def configured(arguments: argparse.Namespace) -> Config:
    """The config, with what only the runtimes know checked too: their names, and what options they take."""
    config, known = load(arguments.config), runtimes()
    for name, model in config.models.items():
        for runtime in {model.runtime, *model.options} - ({"auto", "upstream"} - model.options.keys()):
            if runtime not in known:
                have = ", ".join(sorted([*known, "upstream"]))
                raise BadConfig(f"model '{name}': unknown runtime '{runtime}'; have: auto, {have}")
        if unknown := set((model.upstream and model.upstream.features) or ()) - set(KNOWN):
            have = ", ".join(sorted(KNOWN))
            raise BadConfig(f"model '{name}': upstream.features: unknown feature '{min(unknown)}'; have: {have}")
        if model.upstream and (parser := model.upstream.parser) is not None and parser not in parsers():
            have = ", ".join(sorted(parsers()))
            raise BadConfig(f"model '{name}': upstream.parser: unknown parser '{parser}'; have: {have}")
        for runtime, options in model.options.items():
            convert(options, known[runtime].options, f"model '{name}': options.{runtime}")
    return config


def servable(arguments: argparse.Namespace) -> Config:
    from enginehouse.server import traces

    config = with_flags(configured(arguments), arguments)
    refuse_open(config)
    traces.check(config.server)
    return config


def with_flags(config: Config, arguments: argparse.Namespace) -> Config:
    given = {key: value for key in ("host", "port") if (value := getattr(arguments, key, None)) is not None}
    return msgspec.structs.replace(config, server=msgspec.structs.replace(config.server, **given))


def refuse_open(config: Config) -> None:
    """Without keys anyone who can connect may use the models: on more than loopback that must be said aloud."""
    from enginehouse.server.auth import is_loopback

    if config.server.all_keys or config.server.allow_open or is_loopback(config.server.host):
        return
    raise BadConfig(
        f"host '{config.server.host}' is reachable from outside and there are no API keys; set ENGINEHOUSE_API_KEYS "
        "(or server.api_keys), or say server.allow_open: true (ENGINEHOUSE_ALLOW_OPEN=true)"
    )


def listen(host: str, port: int, remedy: str = "choose another with --port") -> socket.socket:
    """Bound here and not by uvicorn, whose message for a port in use names no remedy."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # and so of each connection
        return listener
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # Python 3.11 and older add the address again
        raise BadConfig(f"cannot listen on {host} port {port}: {reason}; {remedy}") from error


if __name__ == "__main__":
    main()
