"""`python -m zoo.icr.sweep`: train one ICR transformer for each number M of tasks."""

import sys
from typing import Any

from zoo.console.exit_codes import run_command
from zoo.console.messages import refuse_non_utf8, silence_lightning
from zoo.console.table import table
from zoo.errors import UserError
from zoo.icr.sweep.metadata import ENDED, WAITING, Metadata
from zoo.icr.sweep.options import RUNTIME_ARGS, ArrayShare, Share, model_config, parse
from zoo.icr.sweep.processes import run_in_processes
from zoo.icr.sweep.training import build_stack, train_members


def main(argv: list[str]) -> None:
    """Run the sweep; raises UserError if a member did not end."""
    silence_lightning()
    refuse_non_utf8(argv)
    args = parse(argv)
    metadata = Metadata(args.output_dir)
    if args.collect:
        status = metadata.collect()
        if not status:
            raise UserError(f"{args.output_dir} has no sweep: give the --output_dir of one")
        report(status, metadata)
        return
    all_members = list(dict.fromkeys(args.tasks or [2**power for power in range(1, args.max_power + 1)]))
    for M in all_members:
        model_config(args, M)
    build_stack(all_members[:1], args)  # settings that are not valid are refused before anything is written
    share, array_tasks = args.share or Share(1, 1), None
    if isinstance(share, ArrayShare):
        share = share.of(metadata.array_tasks(), metadata.path)
        array_tasks = share.total
    settings = {name: value for name, value in vars(args).items() if name not in RUNTIME_ARGS}
    metadata.start(settings, all_members, array_tasks)
    members = all_members[share.number - 1 :: share.total]
    if not members:
        print(f"zoo: share {share.number}/{share.total} has no members: the sweep has only {len(all_members)}")
        return
    if args.processes > 1:
        run_in_processes(argv, min(args.processes, len(members)))
    else:
        train_members(members, args, metadata)
    status = metadata.collect()
    report({str(M): status.get(str(M), WAITING) for M in members}, metadata)


def report(members: dict[str, dict[str, Any]], metadata: Metadata) -> None:
    """Print a table of members, by M; raises UserError if one of them did not end."""
    print(table([table_row(M, member) for M, member in members.items()]))
    unfinished = [f"{M} ({member['status']})" for M, member in members.items() if member["status"] not in ENDED]
    if unfinished:
        raise UserError(
            f"{len(unfinished)} of {len(members)} members have not ended, M {', '.join(unfinished)}: "
            f"see {metadata.path}, and start the sweep again to continue them"
        )


def table_row(M: str, member: dict[str, Any]) -> dict[str, str]:
    """A member's status and errors for the terminal."""
    shown = ("val_pretrain_mse", "val_true_mse", "val_true_to_ridge", "val_true_to_dmmse")
    errors = {name.removeprefix("val_"): f"{member[name]:.4f}" if name in member else "" for name in shown}
    return {"M": M, "status": member["status"], "steps": f"{member['step']:,}", **errors}


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
