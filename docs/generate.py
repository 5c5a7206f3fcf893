"""Write the generated parts of the documentation anew, from the code: `python docs/generate.py`.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->`, in any page of this directory. A
test fails when one is out of date. The descriptions in the tables are the docstrings that stand below the fields in the
source, the help texts of the options, and the metrics' own.
"""
# ruff: noqa: INP001 - a script, not a package

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import msgspec
from prometheus_client import Metric, ProcessCollector

import enclave_broker.cli
import enclave_broker.metrics
import enclave_client.cli
import enclave_client.limits
import enclave_client.request
import enclave_worker.cli
from enclave_broker.access import Quotas, Scope
from enclave_broker.tools.audit import AuditLine
from enclave_broker.tools.sources import tools_file
from enclave_broker.tools.tool import ToolPolicy
from enclave_protocol import AnyEvent, Code, Limits, State
from enclave_protocol.limits import ALIASES
from enclave_protocol.session import TRANSITIONS
from enclave_worker.cgroups import CONTROLLERS
from enclave_worker.profiles import SHIPPED, Profile
from enclave_worker.runtime import create_runtime_worker
from enclave_worker.sandbox import policy, seccomp
from enclave_worker.sandbox.levels import LEVELS, Layer
from enclave_worker.sandbox.plan import make_plan
from enclave_worker.sandbox.spec import SandboxSpec, python_spec
from enclave_worker.zygote import kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from enclave_worker.sandbox.plan import Plan, Step

PAGES = sorted(Path(__file__).parent.glob("*.md"))

_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)


def render(page: str) -> str:
    """Return the page with every generated part made anew; raises KeyError for a part that nothing here makes."""
    return _PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}\n{part[3]}", page)


def states() -> str:
    """The session's states as a mermaid diagram."""
    arrows = [
        f"    {state} --> {after}: {trigger}" for state, row in TRANSITIONS.items() for trigger, after in row.items()
    ]
    ends = [f"    {state} --> [*]" for state in State if state.terminal]
    return "\n".join(["```mermaid", "stateDiagram-v2", f"    [*] --> {State.STARTING}", *arrows, *ends, "```"])


def events() -> str:
    """Every event with its payload; a `?` marks a field that may be absent."""
    return _table(("type", "payload", "meaning"), (_event_row(cls) for cls in get_args(AnyEvent)))


def _event_row(cls: Any) -> tuple[str, str, str]:
    payload = next(field.type for field in msgspec.structs.fields(cls) if field.name == "payload")
    names = [f"`{f.encode_name}{'' if f.required else '?'}`" for f in msgspec.structs.fields(payload)]
    return f"`{cls.__struct_config__.tag}`", ", ".join(names), inspect.getdoc(cls) or ""


def limits() -> str:
    """Every limit, its default and its meaning."""
    described = _described(Limits)
    rows = [
        (f"`{field.encode_name}`", _default(field), described[field.name]) for field in msgspec.structs.fields(Limits)
    ]
    aliases = [(f"`{alias}`", "", f"Another name of `{name}`.") for alias, name in ALIASES.items()]
    return _table(("limit", "default", "meaning"), [*rows, *aliases])


def _default(field: msgspec.structs.FieldInfo) -> str:
    return "none" if field.default is msgspec.UNSET else f"`{msgspec.json.encode(field.default).decode()}`"


def outcomes() -> str:
    """Every code of `final.error`, and whether a retry can help."""
    described = _described(Code)
    rows = [(f"`{code}`", "yes" if code.retryable else "no", described[code.name]) for code in Code]
    return _table(("code", "retryable", "meaning"), rows)


def _described(cls: type) -> dict[str, str]:
    """Name of each field of a class, and the docstring below it."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef), "the source of a class is a class"
    found: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        target = field.targets[0] if isinstance(field, ast.Assign) else getattr(field, "target", None)
        if isinstance(target, ast.Name) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[target.id] = " ".join(str(text.value.value).split())
    return found


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def profile_fields() -> str:
    """Every field of a profile."""
    described = _described(Profile)
    names = [field.name for field in msgspec.structs.fields(Profile) if field.name != "name"]
    return _table(("field", "meaning"), [(f"`{name}`", described[name]) for name in names])


def tool_policy() -> str:
    """Every field of a tool's policy."""
    described = _described(ToolPolicy)
    rows = [
        (f"`{f.name}`", "" if f.default is None else f"`{f.default!r}`", described[f.name]) for f in fields(ToolPolicy)
    ]
    return _table(("option", "default", "meaning"), rows)


def audit_line() -> str:
    """Every field of an audit line."""
    described = _described(AuditLine)
    rows = [(f"`{f.encode_name}`", described[f.name]) for f in msgspec.structs.fields(AuditLine) if f.name in described]
    return _table(("field", "meaning"), rows)


def shipped_profiles() -> str:
    """The file of profiles that comes with a worker."""
    return f"```toml\n{SHIPPED.read_text()}```"


def spec() -> SandboxSpec:
    """The `python` profile's sandbox on a Debian with Python in /usr/local, so that every host writes the same page."""
    here = python_spec(LEVELS["SECURE"].resources, counted=True)
    library = "/usr/local/lib/python3.11"
    return msgspec.structs.replace(
        here,
        machine="x86_64",
        visible=("/usr/bin", "/usr/lib", "/usr/share/zoneinfo", library),
        visible_files=("/usr/local/bin/python3.11", "/usr/local/lib/libpython3.11.so.1.0"),
        hidden=(f"{library}/site-packages", "/usr/lib/python3/dist-packages"),
        links=(("usr/bin", "/bin"), ("usr/lib", "/lib")),
    )


def _plans() -> tuple[Plan, Plan]:
    groups = {name: f"…/{name}/…/enclave-1" for name in CONTROLLERS[1]}
    host: dict[str, Any] = {"control_groups": groups, "landlock_abi": 7, "own_clocks": True}
    root = make_plan(spec(), privilege="root", uid=0, gid=0, **host)
    return root, make_plan(spec(), privilege="user", uid=1234, gid=1234, **host)


def launch_steps() -> str:
    """What the zygote's parent does."""
    root, user = _plans()
    return _steps(root.launch, user.launch)


def prepare_steps() -> str:
    """What the zygote does."""
    root, user = _plans()
    return _steps(root.prepare, user.prepare)


def enclose_steps() -> str:
    """What every sandbox does."""
    root, user = _plans()
    return _steps(root.enclose, user.enclose)


def _steps(as_root: list[Step], as_user: list[Step]) -> str:
    """One table of two lists of steps, which says of each step who performs it."""
    rows: list[tuple[str, ...]] = []
    texts = [[_step_row(step) for step in steps] for steps in (as_root, as_user)]
    for kind, i, j, k, n in difflib.SequenceMatcher(None, texts[0], texts[1], autojunk=False).get_opcodes():
        if kind == "equal":
            rows += [(*row, "both") for row in texts[0][i:j]]
        else:
            rows += [(*row, "root") for row in texts[0][i:j]] + [(*row, "ordinary user") for row in texts[1][k:n]]
    return _table(("", "step", "how", "who"), ((str(number), *row) for number, row in enumerate(rows, 1)))


_NAMESPACE_FLAGS = {name: value for name, value in vars(kernel).items() if name.startswith("CLONE_NEW")}


def _step_row(step: Step) -> tuple[str, str]:
    name, operation, *arguments = step
    if operation == "unshare":
        flags = arguments[0]
        assert isinstance(flags, int), "unshare takes flags"
        details = [flag for flag, value in _NAMESPACE_FLAGS.items() if flags & value]
    elif operation == "rlimit":
        details = [f"soft {arguments[1]}, hard {arguments[2]}"]
    else:
        details = [argument for argument in arguments if isinstance(argument, str)]
    shown = " ".join(detail.replace("\n", "\\n").replace("|", "\\|") for detail in details if detail)
    return str(name), f"{operation} `{shown}`" if shown and operation != "seccomp" else str(operation)


def rlimits() -> str:
    """Every resource limit of a sandbox."""
    rows = [(f"`RLIMIT_{limit.name}`", f"{limit.soft}", f"{limit.hard}") for limit in spec().rlimits]
    return _table(("limit", "soft", "hard"), rows)


def syscalls() -> str:
    """The calls that the filter refuses whatever their arguments."""
    rows = []
    for reason, names in (policy.DENIED | policy.UNCOUNTED).items():
        calls = [f"`{name}`{'*' if name in policy.PROBED else ''}" for name in names.split()]
        rows.append((reason, ", ".join(calls)))
    return _table(("why", "calls"), rows)


def allowed_syscalls() -> str:
    """The calls that the filter lets through, and why that is safe."""
    rows = []
    for reason, names in policy.ALLOWED.items():
        calls = [f"`{name}`{'†' if name in seccomp.BY_ARGUMENT else ''}" for name in names.split()]
        rows.append((reason, ", ".join(calls)))
    return _table(("why", "calls"), rows)


def levels() -> str:
    """What each security level requires and grants."""
    heads = ("", *LEVELS)
    rows = [(f"{layer}", *_marks(layer)) for layer in Layer]
    for name, text in _RESOURCES.items():
        rows.append((text, *(_amount(name, getattr(level.resources, name)) for level in LEVELS.values())))
    return _table(heads, rows)


_RESOURCES = {
    "memory_limit_bytes": "memory of the sandbox, its files included",
    "processes": "processes and threads",
    "cpus": "processors at a time",
    "cpu_time_ms": "processor time in all",
    "open_files": "descriptors of each process",
    "disk_bytes": "each of three writable directories, and a file",
}


def _marks(layer: Layer) -> list[str]:
    return ["required" if layer in level.requires else "if there" for level in LEVELS.values()]


def _amount(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return f"{value / 2**20:g} MiB"
    if name == "cpus":
        return f"{value:g}" if value else "all"
    return f"{value / 1000:g} s" if name.endswith("_ms") else f"{value:g}"


_ARGUMENT_RULES = {
    "clone": "no `CLONE_NEW*` flag: `EPERM`",
    "fcntl": "no `F_SETLEASE` and no `F_NOTIFY`, which reach others who use the file: `EPERM`",
    "ioctl": "not `TIOCSTI` nor `TIOCLINUX`, which type into a terminal: `EPERM`",
    "kill": "not `SIGKILL` nor `SIGSTOP` to process 1: `EPERM`",
    "personality": "only plain Linux, and asking: `EPERM`",
    "prctl": "not the parent-death signal, dumpability, securebits, memory maps, syscall dispatch: `EPERM`",
    "socket": (
        "only `AF_UNIX`, `AF_INET` and `AF_INET6`: `EAFNOSUPPORT`; of the latter two only streams and datagrams, "
        "and of the protocols only the default, TCP and UDP: `EPROTONOSUPPORT`"
    ),
    "socketpair": "as `socket`",
    "tgkill": "as `kill`",
    "tkill": "as `kill`",
}


def argument_rules() -> str:
    """The calls of which the filter reads an argument; raises KeyError for one without a description here."""
    rules = seccomp.BY_ARGUMENT
    return _table(("call", "allowed"), ((f"`{name}`", _ARGUMENT_RULES[name]) for name in sorted(rules)))


def options() -> str:
    """Every option of every command, from click."""
    parts = [("enclave-runtime", enclave_worker.cli.main), ("enclave-broker", enclave_broker.cli.main)]
    for name in enclave_client.cli.COMMANDS:
        module = importlib.import_module(f"enclave_client.commands.{name}")
        group = module.command
        if isinstance(group, click.Group):
            parts += [(f"enclave {name} {below}", command) for below, command in group.commands.items()]
        else:
            parts.append((f"enclave {name}", group))
    return "\n\n".join(_options_of(name, command) for name, command in parts)


def _options_of(name: str, command: click.Command) -> str:
    prefix = command.context_settings.get("auto_envvar_prefix")
    options = [p for p in command.params if isinstance(p, click.Option) and p.name != "version"]
    rows = [_option_row(option, prefix) for option in options]
    arguments = [f" {p.make_metavar(click.Context(command))}" for p in command.params if isinstance(p, click.Argument)]
    heading = f"### `{name}{''.join(arguments)}`\n\n{(command.help or '').splitlines()[0]}"
    return f"{heading}\n\n" + (_table(("option", "variable", "default", "meaning"), rows) if rows else "No options.")


def _option_row(option: click.Option, prefix: str | None) -> tuple[str, ...]:
    variable = option.envvar or (f"{prefix}_{(option.name or '').upper()}" if prefix else "")
    default = "" if option.is_flag or not isinstance(option.default, int | float | str) else str(option.default)
    return f"`{option.opts[0]}`", f"`{variable}`", f"`{default}`" if default else "", (option.help or "").strip()


def worker_metrics() -> str:
    """What a worker counts."""
    return _metrics(create_runtime_worker().metrics.registry)


def broker_metrics() -> str:
    """What the broker counts."""
    return _metrics(enclave_broker.metrics.Metrics().registry)


def _metrics(registry: Any) -> str:
    rows = []
    for metric in registry._collector_to_names:  # noqa: SLF001 - with their labels
        if isinstance(metric, ProcessCollector):
            rows += [(f"`{_full_name(f)}`", f.type, "", f.documentation.rstrip(".")) for f in metric.collect()]
            continue
        kind, labels = metric._type, ", ".join(f"`{label}`" for label in metric._labelnames)  # noqa: SLF001 - prometheus_client tells it no other way
        name = f"{metric._name}_total" if kind == "counter" else metric._name  # noqa: SLF001 - prometheus_client tells it no other way
        rows.append((f"`{name}`", kind, labels, metric._documentation.rstrip(".")))  # noqa: SLF001 - prometheus_client tells it no other way
    return _table(("metric", "kind", "labels", "meaning"), sorted(rows))


def _full_name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def scopes() -> str:
    """What a key or a token can be good for."""
    described = _described(Scope)
    return _table(("scope", "meaning"), ((f"`{scope}`", described[scope.name]) for scope in Scope))


def quotas() -> str:
    """What a tenant can be given."""
    described = _described(Quotas)
    names = [field.name for field in msgspec.structs.fields(Quotas)]
    return _table(("quota", "what counts"), ((f"`{name}`", described[name]) for name in names))


def openapi_fields() -> str:
    """Every field of `[openapi.NAME]`."""
    return _tools_file_fields(tools_file.OpenApiTable)


def endpoint_fields() -> str:
    """Every field of `[http.NAME]`."""
    return _tools_file_fields(tools_file.EndpointTable)


def mcp_fields() -> str:
    """Every field of `[mcpServers.NAME]`."""
    return _tools_file_fields(tools_file.McpTable)


def mcp_extra_fields() -> str:
    """Every field of `[mcpServers.NAME.enclave]`."""
    return _tools_file_fields(tools_file.McpExtras)


def auth_fields() -> str:
    """Every field of `auth`."""
    return _tools_file_fields(tools_file.AuthTable)


def _tools_file_fields(kind: type[msgspec.Struct]) -> str:
    described: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        described |= _described(cls) if cls.__module__ == tools_file.__name__ else {}
    rows = [(f"`{field.encode_name}`", described.get(field.name, "")) for field in msgspec.structs.fields(kind)]
    return _table(("field", "meaning"), rows)


def client_options() -> str:
    """Every option of a session in the client library."""
    request = enclave_client.request
    described = _described(request.SessionOptions) | _described(request.RunOptions)
    names = dict.fromkeys([*request.SessionOptions.__annotations__, *request.RunOptions.__annotations__])
    return _table(("option", "meaning"), [(f"`{name}`", described[name]) for name in names])


def client_limits() -> str:
    """Every limit in the client library."""
    described = _described(enclave_client.limits.Limits)
    return _table(
        ("limit", "meaning"), [(f"`{f.name}`", described[f.name]) for f in fields(enclave_client.limits.Limits)]
    )


_FUNCTIONS = (
    *(states, events, limits, outcomes),
    *(launch_steps, prepare_steps, enclose_steps, rlimits, syscalls, allowed_syscalls, argument_rules, levels),
    *(options, worker_metrics, broker_metrics, scopes, quotas, profile_fields, shipped_profiles),
    *(tool_policy, audit_line),
    *(openapi_fields, endpoint_fields, mcp_fields, mcp_extra_fields, auth_fields),
    *(client_options, client_limits),
)
PARTS: dict[str, Callable[[], str]] = {function.__name__: function for function in _FUNCTIONS}


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(render(page.read_text()))
