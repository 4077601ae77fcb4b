"""The command tree: global options, and commands whose code is imported only when they run."""

from __future__ import annotations

from importlib import import_module

import click

from pyctrd.cli.globals import Globals

# Command → the module that holds it; the function is named for the command.
COMMANDS = {
    "attach": "pyctrd.cli.attach",
    "cat": "pyctrd.cli.files",
    "check": "pyctrd.cli.store",
    "checkpoint": "pyctrd.cli.checkpoint",
    "commit": "pyctrd.cli.commit",
    "convert": "pyctrd.cli.convert",
    "copy": "pyctrd.cli.push",
    "cp": "pyctrd.cli.cp",
    "create": "pyctrd.cli.run",
    "delete": "pyctrd.cli.registry",
    "df": "pyctrd.cli.space",
    "diff": "pyctrd.cli.commit",
    "events": "pyctrd.cli.events",
    "exec": "pyctrd.cli.exec",
    "export": "pyctrd.cli.cp",
    "fork": "pyctrd.cli.fork",
    "gc": "pyctrd.cli.collection",
    "healthcheck": "pyctrd.cli.health",
    "images": "pyctrd.cli.images",
    "info": "pyctrd.cli.store",
    "inspect": "pyctrd.cli.inspect",
    "kill": "pyctrd.cli.containers",
    "lease": "pyctrd.cli.lease",
    "load": "pyctrd.cli.images",
    "login": "pyctrd.cli.login",
    "logout": "pyctrd.cli.login",
    "logs": "pyctrd.cli.containers",
    "ls": "pyctrd.cli.files",
    "metrics": "pyctrd.cli.stats",
    "mount": "pyctrd.cli.images",
    "namespace": "pyctrd.cli.namespaces",
    "pause": "pyctrd.cli.containers",
    "ps": "pyctrd.cli.containers",
    "pull": "pyctrd.cli.images",
    "push": "pyctrd.cli.push",
    "referrers": "pyctrd.cli.registry",
    "rename": "pyctrd.cli.update",
    "restart": "pyctrd.cli.update",
    "restore": "pyctrd.cli.checkpoint",
    "rm": "pyctrd.cli.containers",
    "rmi": "pyctrd.cli.images",
    "run": "pyctrd.cli.run",
    "save": "pyctrd.cli.save",
    "search-tags": "pyctrd.cli.registry",
    "serve": "pyctrd.cli.serve",
    "snapshot": "pyctrd.cli.fork",
    "start": "pyctrd.cli.containers",
    "stats": "pyctrd.cli.stats",
    "stop": "pyctrd.cli.containers",
    "tag": "pyctrd.cli.push",
    "top": "pyctrd.cli.stats",
    "umount": "pyctrd.cli.images",
    "unpause": "pyctrd.cli.containers",
    "unpack": "pyctrd.cli.store",
    "unshare": "pyctrd.cli.unshare",
    "update": "pyctrd.cli.update",
    "version": "pyctrd.cli.store",
    "volume": "pyctrd.cli.volume",
    "wait": "pyctrd.cli.containers",
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All names, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """The command, imported now."""
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command = getattr(import_module(module), f"{cmd_name.replace('-', '_')}_command")
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{cmd_name}_command is no command")
        return command


def _show_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click calls it so
    if wanted:
        from pyctrd import __version__

        click.echo(f"pyctrd {__version__}")
        context.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "PYCTRD"},
)
@click.option("--root", metavar="DIR", help="What survives a reboot [PYCTRD_ROOT, /var/lib/pyctrd].")
@click.option("--state", metavar="DIR", help="What a reboot ends [PYCTRD_STATE, /run/pyctrd].")
@click.option("-n", "--namespace", metavar="NAME", help="The tenant [PYCTRD_NAMESPACE, default].")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.option("--debug", is_flag=True, help="Log to standard error, and show tracebacks.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version)
@click.pass_context
def pyctrd(
    context: click.Context,
    root: str | None,
    state: str | None,
    namespace: str | None,
    *,
    as_json: bool,
    debug: bool,
) -> None:
    """Pull, store, unpack and run OCI images, with no daemon."""
    if debug:
        import logging

        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")
    context.obj = Globals(root=root, state=state, namespace=namespace, json=as_json, debug=debug)


pass_globals = click.make_pass_decorator(Globals)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
