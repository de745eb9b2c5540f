"""Secure aggregation: which exchange a round is in and at which step, and the steps that were taken in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("rounds", sa.Column("exchange", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("rounds", sa.Column("exchange_step", sa.String(16), nullable=False, server_default=""))
    op.add_column("updates", sa.Column("exchange_step", sa.String(16), nullable=False, server_default=""))
    op.create_table(
        "exchange_steps",
        sa.Column("job_id", sa.String(80), nullable=False),
        sa.Column("round_number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("exchange", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("step", sa.String(16), nullable=False),
        sa.Column("device_id", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=op.f("fk_exchange_steps_job_id")),
        sa.PrimaryKeyConstraint(
            *("job_id", "round_number", "exchange", "step", "device_id"), name=op.f("pk_exchange_steps")
        ),
    )


def downgrade() -> None:
    op.drop_table("exchange_steps")
    for table, names in (("rounds", ("exchange", "exchange_step")), ("updates", ("exchange_step",))):
        with op.batch_alter_table(table) as batch:
            for name in names:
                batch.drop_column(name)
