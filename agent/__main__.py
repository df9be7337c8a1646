"""`python -m agent` and the frozen binary start here: as the command line, or as one of our own children."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or the child role named by `child ROLE`."""
    if sys.argv[1:2] == ["child"]:
        run_child(" ".join(sys.argv[2:3]))
    else:
        from agent.cli.main import main as command_line

        command_line()


def run_child(role: str) -> None:
    """Run one child role. The imports stay inside, so that each process loads only what it needs."""
    match role:
        case "worker":
            from agent.pipeline.worker import main as run
        case "probe":
            from agent.device.survey.probe import main as run
        case "trial":
            from agent.trial.child import main as run
        case "look":
            from agent.sources.look import main as run
        case "unpack":
            from agent.update.fetching.unpackchild import main as run
        case _:
            sys.stderr.write(f"unknown child role {role!r}: `child` is how holdfast starts its own processes\n")
            sys.exit(2)
    run()


if __name__ == "__main__":
    main()
