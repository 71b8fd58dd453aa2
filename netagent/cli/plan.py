"""`netagent plan`: what the agent would change in the kernel now."""

from __future__ import annotations

import argparse

from netagent.cli import agent, output
from netagent.status import Step

DESCRIPTION = (
    "Compares what the agent wants with what the kernel holds, and prints the difference; changes nothing. Normally "
    "that is nothing: the agent repairs by itself. Exit code 0 whether or not there is a difference, or with "
    "--exit-code 3 when there is one."
)

SIGNS = {"add": "+", "change": "~", "remove": "-"}
DIFFERENT = 3


def configure(parser: argparse.ArgumentParser) -> None:
    agent.add_arguments(parser)
    parser.add_argument("--exit-code", action="store_true", help="exit with 3 when something would change")


def run(args: argparse.Namespace) -> int:
    steps = agent.client(args).plan()
    if args.json:
        output.json(steps)
    else:
        for step in steps:
            print(_line(step))
        if not steps:
            print("nothing to do")
    return DIFFERENT if steps and args.exit_code else 0


def _line(step: Step) -> str:
    text = output.clean(f"{SIGNS.get(step.verb, '?')} {step.kind} {step.text}")
    was = f"  (was {step.was})" if step.was else ""
    owner = f"  [{step.owner}]" if step.owner else ""
    return output.paint(text, output.COLOURS.get(step.verb, output.BOLD)) + output.clean(was + owner)
