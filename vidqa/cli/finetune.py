"""`vidqa finetune`: the answering model learns from one's own videos.

`vidqa finetune --data FILE` trains; the other commands of the group look after the data.
"""

from __future__ import annotations

from typing import Any

import typer.core

from vidqa.command import command_group


class _TrainsByDefault(typer.core.TyperGroup):
    """A group whose own options are those of its command `train`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        help_wanted = set(ctx.help_option_names) & set(args[:1])
        if args and args[0] not in self.commands and not help_wanted:
            args = ["train", *args]
        return super().parse_args(ctx, args)


finetune_app = command_group(
    cls=_TrainsByDefault,
    help="Fine-tune the answering model on your own videos. Without a command it trains: "
    "vidqa finetune --data FILE (see vidqa finetune train --help).",
)
