"""What a round costs beside training: how long it collected, how long and how many steps its devices trained."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("rounds", sa.Column("collecting_since", sa.Float()))
    op.add_column("rounds", sa.Column("collected_s", sa.Float(), nullable=False, server_default="0"))
    op.add_column("rounds", sa.Column("overhead_s", sa.Float()))
    op.add_column("updates", sa.Column("training_seconds", sa.Float()))
    op.add_column("updates", sa.Column("steps", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    for table, columns in (
        ("updates", ("steps", "training_seconds")),
        ("rounds", ("overhead_s", "collected_s", "collecting_since")),
    ):
        with op.batch_alter_table(table) as batch:
            for column in columns:
                batch.drop_column(column)
