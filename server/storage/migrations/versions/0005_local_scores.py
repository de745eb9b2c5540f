"""How devices judged a model version on examples of their own: each device's word, and their sums with the round."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_COUNTS = {
    "updates": ("validation_examples", "validation_correct"),
    "rounds": ("local_examples", "local_correct"),
}


def upgrade() -> None:
    for table, names in _COUNTS.items():
        for name in names:
            op.add_column(table, sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("updates", sa.Column("validation_loss", sa.Float()))
    op.add_column("rounds", sa.Column("local_loss_sum", sa.Float(), nullable=False, server_default="0"))


def downgrade() -> None:
    for table, names in _COUNTS.items():
        with op.batch_alter_table(table) as batch:
            for name in (*names, "validation_loss" if table == "updates" else "local_loss_sum"):
                batch.drop_column(name)
