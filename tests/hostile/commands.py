"""Command lines, environment and standard streams."""

from tests.hostile.case import Bench, Case


def typed(name: str, arguments: list[str], says: str, **environment: str) -> Case:
    return Case(f"typed: {name}", lambda bench: arguments, says, environment=environment)


def estimated(name: str, says: str, *arguments: str) -> Case:
    return Case(f"estimate: {name}", lambda bench: [*bench.run("estimate"), *arguments], says)


def streams(name: str, redirections: str, says: str, status: int = 2, *, command: str = "dry_run") -> Case:
    def make(bench: Bench) -> list[str]:
        return bench.dry_run() if command == "dry_run" else bench.predict()

    return Case(f"streams: {name}", make, says, status, streams=redirections, seconds=120)


CASES = [
    typed("nothing", [], "arguments are required: command"),
    typed("an unknown command", ["fly"], "invalid choice"),
    typed("an unknown command of 100,000 characters", ["x" * 100_000], "invalid choice.*left out"),
    typed(
        "an unknown option of 100,000 characters", ["doctor", "--" + "x" * 100_000], "unrecognized arguments.*left out"
    ),
    typed("escapes", ["doctor", "--\x1b[31m"], r"unrecognized.*\\u001b"),
    typed("no config", ["run"], "arguments are required: --config"),
    typed("a config of nothing", ["run", "--config", ""], "cannot be read"),
    typed("no run for the report", ["report"], "one of the arguments --run --compare is required"),
    Case("typed: an override of one word", lambda bench: bench.dry_run("epochs"), "'epochs' is not an override"),
    Case("typed: an override of nothing", lambda bench: bench.dry_run("=3"), "'=3' is not an override"),
    Case("typed: an override of 1,000 dots", lambda bench: bench.dry_run("." * 1000 + "=3"), "unknown key ''"),
    estimated("10^12 GPUs", "--world-size", "--world-size", str(10**12)),
    estimated("5,000 digits of GPUs", "--world-size", "--world-size", "1" * 5000),
    estimated("no GPUs", "--world-size 0", "--world-size", "0"),
    estimated("an unknown GPU", "--gpu abacus is unknown", "--gpu", "abacus"),
    estimated("a bandwidth that is none", "--bandwidth", "--bandwidth", "nan"),
    estimated("a bandwidth without end", "--bandwidth", "--bandwidth", "1e999"),
    streams("all closed, dry run", "<&- >&- 2>&-", ""),
    streams("standard output closed", ">&-", "standard output cannot be written"),
    streams("standard output full", ">/dev/full", "standard output cannot be written"),
    streams("predict into a closed output", ">&-", "standard output cannot be written", command="predict"),
    streams("predict into a full output", ">/dev/full", "cannot be written", command="predict"),
    streams("standard input closed", "<&-", "labels: 3", 0),
]
