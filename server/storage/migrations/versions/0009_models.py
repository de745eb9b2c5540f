"""When a job is to begin, and which model versions were promoted, by whom, and taken back again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("starts_at", sa.Float()))
    op.create_table(
        "promotions",
        sa.Column("position", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.String(80), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("promoted_at", sa.Float(), nullable=False),
        sa.Column("promoted_by", sa.String(160), nullable=False),
        sa.Column("withdrawn_at", sa.Float()),
        sa.Column("withdrawn_by", sa.String(160)),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name="fk_promotions_job_id"),
        sa.PrimaryKeyConstraint("position", name="pk_promotions"),
    )


def downgrade() -> None:
    op.drop_table("promotions")
    with op.batch_alter_table("jobs") as batch:
        batch.drop_column("starts_at")
